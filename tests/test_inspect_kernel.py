"""What inspect_kernel.py says, and its page in a real browser."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TRANSPOSE = """
__global__ void transpose(const float* x, float* y, int n) {
    __shared__ float tile[32][32];
    const int column = blockIdx.x * 32 + threadIdx.x, row = blockIdx.y * 32 + threadIdx.y;
    for (int j = 0; j < 32; j += 8) tile[threadIdx.y + j][threadIdx.x] = x[(row + j) * n + column];
    __syncthreads();
    const int to = blockIdx.y * 32 + threadIdx.x, from = blockIdx.x * 32 + threadIdx.y;
    for (int j = 0; j < 32; j += 8) y[(from + j) * n + to] = tile[threadIdx.x][threadIdx.y + j];
}
"""
LAUNCH = ["transpose", "--grid", "2x2", "--block", "32x8"]
LAUNCH += ["--arg", "x=arange:64x64:float32", "--arg", "y=zeros:64x64:float32", "--arg", "n=64"]


@pytest.fixture(autouse=True)
def on_the_cpu(current_device):
    if current_device != "cpu":
        pytest.skip("the counters are of the cpu device")


def inspect(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "examples" / "inspect_kernel.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def transpose(tmp_path) -> list[str]:
    file = tmp_path / "mine.cu"
    file.write_text(TRANSPOSE + "int main() { transpose<<<1, 1>>>(0, 0, 0); }\n")
    return ["--file", str(file), *LAUNCH]


def test_a_file_of_ones_own(transpose):
    result = inspect(*transpose)
    assert result.returncode == 0, result.stderr
    (line,) = [line for line in result.stdout.splitlines() if line.lstrip().startswith("8 ")]
    assert "load 4 B 32 lanes, 32.00 x wavefronts" in result.stdout
    assert "store 4 B 32 lanes, 1.00 x sectors" in result.stdout
    assert "tile[threadIdx.x]" in line


def test_a_kernel_at_the_shapes_of_a_stage():
    result = inspect("batchnorm_forward", "--layer", "3", "--batch", "2")
    assert result.returncode == 0, result.stderr
    assert "kernels/batchnorm.cu" in result.stdout and "x sectors" in result.stdout
    missing = inspect("nothing", "--layer", "0", "--batch", "2")
    assert missing.returncode == 1 and "'nothing' is not launched there; launched are conv3x3" in missing.stderr


def test_a_training_step(tmp_path):
    result = inspect("--step", "--batch", "128", "--json", str(tmp_path / "step.json"))
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "step.json").read_text())
    rows = report["launches"]
    assert {"kernel", "grid", "block", "count", "flops", "global", "shared", "gpus"} <= rows[0].keys()
    convolutions = [r for r in rows if r["kernel"].startswith("conv3x3")]
    # Three passes of a forward of 40.55 million multiply-adds an image, less the first layer's input gradient.
    total = sum(r["count"] * r["flops"] for r in convolutions)
    assert total == pytest.approx(128 * 2 * (3 * 40.55e6 - 0.442e6), rel=0.03)
    for row in rows:
        assert row["global"]["sectors"] >= row["global"]["sectors_least"]
        assert row["shared"]["wavefronts"] >= row["shared"]["wavefronts_least"]
        if row["gpus"]:
            h100 = row["gpus"]["H100"]
            assert h100["floor_us"] == max(h100["floors_us"].values()) >= 0
            assert 0 < h100["warps_at_grid"] <= h100["warps_by_resources"] <= 64
    launches = sum(r["count"] for r in rows)
    assert 100 <= launches <= 180 and re.search(rf"^{launches} launches, ", result.stdout, re.MULTILINE)
    step = sum(r["count"] * r["flops"] for r in rows)
    for row in rows:
        if row["count"] * row["flops"] > step / 100:
            of_a_gpus_shape(row)
        if row["kernel"].startswith("batchnorm"):
            assert row["global"]["sectors"] <= 1.1 * row["global"]["sectors_least"]


def of_a_gpus_shape(row: dict) -> None:
    """What is asked of a kernel that counts: threads, lanes, sectors, wavefronts, and registers where NVRTC is installed."""
    both = [row["global"], row["shared"]]
    assert row["block"][0] >= 64, row
    assert sum(c["lanes"] for c in both) >= 28 * sum(c["requests"] for c in both), row
    assert row["global"]["sectors"] <= 1.25 * row["global"]["sectors_least"], row
    assert row["shared"]["wavefronts"] <= 1.15 * row["shared"]["wavefronts_least"], row
    for gpu in row["gpus"].values():
        assert gpu["registers"] <= 128 and gpu["spill_bytes"] == 0, row
    if row["gpus"]:
        h100 = row["gpus"]["H100"]
        assert h100["floors_us"]["wavefronts"] <= 1.25 * h100["floors_us"]["arithmetic"], row
        # The stage of 8 x 8 has 15 values for each lane of that GPU.
        assert h100["warps_at_grid"] >= (3.8 if row["kernel"].startswith("conv3x3<8, 8,") else 7.5), row
    assert row["flops"] / 2 >= 4 * row["words"], row  # multiply-adds that a word from shared memory or the first cache feeds


def test_the_busiest_loop_by_hand():
    """Four channels of x, three rows of taps, 8 x 4 sums a thread; the loop is run for 3 columns of taps and 16 / 4 channels."""
    pytest.importorskip("cupy", reason="NVRTC comes with CuPy")
    result = inspect("conv3x3", "--layer", "1", "--batch", "2")
    assert result.returncode == 0, result.stderr
    threads = 2 * 4 * 128  # images, tiles of 8 x 32 pixels, parts of a tile
    assert f"PTX for compute_90, the busiest loop: {threads * 3 * 4:,} rounds of " in result.stdout
    counts = re.findall(r"^ +384\.0  multiply-add\n +.*\n(?:.*\n)*? +10\.0  load shared 16 B$", result.stdout, re.MULTILINE)
    assert "12.0  load global 16 B" in result.stdout and counts
    from instructions import nvdisasm

    if nvdisasm():
        assert re.search(r"machine code of sm_90, the busiest loop: 4\d\d\.0 instructions, 9\d% of them", result.stdout)
        t4 = inspect("conv3x3", "--layer", "1", "--batch", "2", "--gpu", "T4")
        assert "machine code of sm_75" in t4.stdout


def test_kinds_of_instructions():
    from instructions import PTX_KINDS, SASS_KINDS, kind_of

    for operation, kind in {
        "ld.global.nc.v4.f32": "load global 16 B",
        "ld.shared.u8": "load shared 1 B",
        "st.f64": "store generic 8 B",
        "atom.global.add.u32": "atomic global 4 B",
        "fma.rn.f64": "multiply-add",
        "mad.lo.s32": "address arithmetic",
        "cvt.s64.s32": "address arithmetic",
        "cvt.rn.f32.s32": "other arithmetic",
        "setp.lt.s32": "control",
        "bar.sync": "control",
    }.items():
        assert kind_of(operation, PTX_KINDS) == kind, operation
    for operation, kind in {
        "FFMA": "multiply-add",
        "LDS.128": "load shared 16 B",
        "LDG.E.64.CONSTANT": "load global 8 B",
        "STL": "store local 4 B",
        "LDG.E.U8": "load global 1 B",
        "IMAD.WIDE": "address arithmetic",
        "MUFU.RSQ": "other arithmetic",
        "ISETP.GE.AND": "control",
        "BAR.SYNC.DEFER_BLOCKING": "control",
        "UMOV": "move",
    }.items():
        assert kind_of(operation, SASS_KINDS) == kind, operation


def test_floors_by_hand():
    from occupancy import GPUS, floors

    found = floors(GPUS["H100"], 66.9e9, 3.35e9, 132 * 1980 * 2e3, 132 * 1980 * 3e3)
    assert found == pytest.approx({"arithmetic": 1000, "memory": 1000, "sectors": 1000, "wavefronts": 3000})


@pytest.fixture(params=[1400, 700])
def browser(request):
    if not shutil.which("chromium") or not shutil.which("chromedriver"):
        pytest.skip("Debian's chromium and chromium-driver are not installed")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"):
        options.add_argument(flag)
    for flag in ("--disable-quic", "--no-first-run", "--disable-component-update"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    driver.set_window_size(request.param, 900)
    yield driver
    driver.quit()


def test_the_page(transpose, tmp_path, browser):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    path = tmp_path / "page.html"
    result = inspect(*transpose, "--html", str(path))
    assert result.returncode == 0, result.stderr
    assert not re.search(r"(?:src|href)=[\"'](?!#)", path.read_text())  # nothing is fetched
    browser.get(path.as_uri())
    assert "transpose" in browser.title
    # The page is as wide as the window, and its code as wide as its longest line, which is not wrapped.
    assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    heights = browser.execute_script("return [...document.querySelectorAll('.mr-code pre')].map(p => p.offsetHeight)")
    assert len(heights) == 8 and max(heights) < 1.5 * min(heights)
    # The one bad line is named above the code.
    (worst,) = [a for a in browser.find_elements(By.TAG_NAME, "a") if a.text == "line 8"]
    worst.click()
    assert browser.current_url.endswith("#transpose-8")
    (bad,) = browser.find_elements(By.CSS_SELECTOR, "details.much")
    ActionChains(browser).send_keys("jjjjkj").perform()
    assert browser.switch_to.active_element == bad.find_element(By.TAG_NAME, "summary")
    assert browser.switch_to.active_element.text == "load 4 B 32 lanes, 32.00 x wavefronts"
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    assert bad.get_attribute("open") and "32 wavefronts" in bad.text and "32!" in bad.text
    assert len(bad.find_element(By.CSS_SELECTOR, ".mr-lanes").find_elements(By.TAG_NAME, "b")) == 32
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    assert not bad.get_attribute("open")
    load = next(d for d in browser.find_elements(By.TAG_NAME, "details") if "load" in d.text and "sectors" in d.text)
    load.find_element(By.TAG_NAME, "summary").click()
    assert "4 sectors, 128 bytes fetched, 128 used" in load.text
    background = "return getComputedStyle(document.documentElement).backgroundColor"
    light = browser.execute_script(background)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]})
    assert light == "rgb(255, 255, 255)" and max(map(int, re.findall(r"\d+", browser.execute_script(background)))) < 64
