from .device import *
