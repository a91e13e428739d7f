"""eval/speed.py with tiny sizes: it runs, names its figures, and tells mistakes. What it measures is not judged."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[1] / "eval" / "speed.py"

pytestmark = pytest.mark.skipif(
    not PROGRAM.is_file(), reason="eval/speed.py is not beside the tests (they run on an installed package)"
)


def call(*words: str | Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(PROGRAM), *map(str, words)], capture_output=True, text=True)


def test_every_measurement_runs_and_writes_its_keys(tmp_path):
    result = call("--tiny", "--only", "quantize,encode,memory,cache,training,cheers", "--json", tmp_path / "speed.json")
    assert result.returncode == 0, result.stderr
    figures = json.loads((tmp_path / "speed.json").read_text())
    keys = {
        "quantize_1024_cpu_s", "quantize_1024_flat_cpu_s", "quantize_1024_llamagen_cpu_s", "encode_256_cpu_s",
        "encode_256_peak_mib", "tokenizer_256_weights_mib", "cache_bytes_per_image", "cache_decode_us_per_image",
        "train_speedup_over_padded", "train_packed_sdpa_samples_per_s", "cheers_step_cpu_s",
        "cheers_step_by_branch_cpu_s", "cheers_decode_cpu_s",
    }  # fmt: skip
    assert keys <= set(figures) and all(figures[key] > 0 for key in keys)
    assert figures["tiny"] is True and figures["versions"]["torch"] and figures["encode_256_peak_mib"] > 10
    assert figures["num_samples"]["quantize_1024_cpu_s"] == {"positions": 1024}
    assert figures["num_samples"]["encode_256_cpu_s"] == figures["num_samples"]["cheers_step_cpu_s"] == {"pictures": 1}
    assert figures["num_samples"]["encode_256_peak_mib"] == {"pictures": 64}
    for name, told in (("LlamaGen's arithmetic", "1,024 positions"), ("UniTok, 8 x", "1,024 positions"),
                       ("parameters encode", "1 picture "), ("UniTok-L", "1 picture "), ("one step", "1 picture "),
                       ("packed shards", "4,096 pictures"), ("speed-up", "8 samples")):  # fmt: skip
        assert told in next(line for line in result.stdout.splitlines() if name in line)
    # ours, then the peers' with the mark that says so
    assert "SemHiTok" in result.stdout and "UniTok" in result.stdout and "elsewhere" in result.stdout


def test_mistakes_are_told_in_one_line(tmp_path):
    result = call("--only", "quantise")
    assert result.returncode == 2 and "did you mean 'quantize'?" in result.stderr and "Traceback" not in result.stderr
