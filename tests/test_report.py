"""eval/report.py on hand-made results of two models: the table, the page, and what it says of files that are none."""

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
from conftest import load_program
from PIL import Image

from unimllm.fingerprint import fingerprint, weights_fingerprint
from unimllm.gallery import first_drawings, first_of_each, folder_from, kept_questions
from unimllm.metrics.geneval_records import OWN_PROMPTS
from unimllm.result_measures import MEASURES, told_data
from unimllm.results import shortest_labels

EVIL = '<script>alert("1")</script>|`x`'
VOID = {"meta", "img", "br"}


@pytest.fixture(scope="module")
def program():
    return load_program("eval/report.py")


# ---- hand-made results ---------------------------------------------------------------------------------------------


def facts(name: str, model: str, **others) -> dict:
    return {
        "program": f"eval/{name}.py", "model": model, "fingerprint": "0123456789abcdef", "fingerprint_of": "weights",
        "commit": "abcdef0123-dirty", "command": f"python eval/{name}.py --model '{model}'", "seed": 0,
        "versions": {"torch": "2.13.0"}, "num_samples": {"pictures": 4}, "limited": False, "processor": "a CPU",
        "threads": 2, "device": "cpu",
    } | others  # fmt: skip


def scenes(model: str, **others) -> dict:
    """What eval/scenes.py writes, with one kind of question and one tag."""
    return facts("scenes", model, split="test") | {
        "psnr": 28.333, "ssim": 0.9, "objects_read": 0.75, "semantic_code_use": 0.96, "flat_code_use": 0.25,
        "num_pictures": 1000, "num_questions": 2000, "num_questions_by_kind": {"color_yes_no": 250},
        "num_pope_questions": 600, "num_prompts": 500, "images_per_prompt": 1, "num_pictures_by_tag": {"colors": 48},
        "pope": {"random": {}}, "pope_f1": 0.9, "pope_f1_random": 0.9, "question_accuracy": 0.8,
        "question_accuracy_by_kind": {"color_yes_no": 0.7}, "geneval": {"colors": 0.4378, "overall": 0.4378},
        "mme": {"count": {"score": 150.0}}, "mme_total": 150.0, "num_mme_pictures": 100,
        "reader_ceiling": {"colors": 1, "overall": 1}, "tokenizer_ceiling": {"colors": 0.854, "overall": 0.9},
        "positions_per_picture": 64, "seconds_per_picture": None, "seconds_per_answer": 0.03,
        "intervals": {
            "psnr": [28.1, 28.5], "ssim": [0.89, 0.91], "objects_read": [0.7, 0.8], "pope_f1_random": [0.8, 0.95],
            "pope_f1": [0.8, 0.95], "mme_count": [140, 160], "mme_total": [140, 160], "question_accuracy": [0.75, 0.85],
            "question_accuracy_by_kind": {"color_yes_no": [0.6, 0.8]},
            "geneval": {"colors": [0.3, 0.58], "overall": [0.38, 0.47]},
        },
    } | others  # fmt: skip


def mme(model: str, **others) -> dict:
    return facts("mme", model, fingerprint_of="answers", limited=True) | {
        "perception": None, "cognition": 300.0, "intervals": {"cognition": [250.0, 350.0], "OCR": [100.0, 160.0]},
        "subtasks": {"OCR": {"score": 130.0, "num_questions": 40}},
    } | others  # fmt: skip


def save(path: Path, content: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def save_gallery(folder: Path, drawn: bool) -> dict:
    """A gallery of one drawing, a question and a wrong answer, with its pictures."""
    for file in ("00000/samples/0000.png", "questions/00003.png"):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), "red").save(folder / file)
    reason = "" if drawn else "0 dog found, 1 wanted"
    drawing = {"filename": "00000/samples/0000.png", "tag": "single_object", "prompt": "a photo of a dog"}
    question = {"filename": "questions/00003.png", "kind": "color", "question": "What color is the dog?"}
    right = question | {"answer": "red", "said": "red", "correct": True}
    wrong = question | {"answer": "red", "said": "blue", "correct": False}
    return {
        "folder": folder.name,
        "drawings": [drawing | {"correct": drawn, "reason": reason, "found": "red dog"}],
        "questions": [right if drawn else wrong],
        "wrong_answers": [] if drawn else [wrong],
    }


@pytest.fixture
def two(tmp_path) -> Path:
    """Results of two models, one with MME."""
    folder = tmp_path / "results"
    save(folder / "a.json", scenes("A", gallery=save_gallery(folder / "a", True)))
    b = {"geneval": {"colors": 0.5, "overall": 0.5}, "limited": True, "num_prompts": 6}
    save(folder / "b.json", scenes(EVIL, gallery=save_gallery(folder / "b", False)) | b)
    save(folder / "mme.json", mme("A"))
    return folder


# ---- the table -----------------------------------------------------------------------------------------------------


def table_of(text: str) -> dict[str, list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.replace(r"\|", "&#124;").strip("|").split("|")] for line in lines]
    assert len({len(row) for row in rows}) == 1
    return {row[0]: row[1:] for row in rows}


def test_two_models_stand_side_by_side(program, call, two):
    ended = call(program, two)
    assert ended.code == 0 and ended.err == ""
    table = table_of(ended.out)
    evil = '&lt;script>alert("1")&lt;/script>&#124;`x`'
    assert table["measure"] == ["samples", "A", evil]
    assert table["PSNR, dB"] == ["1,000", "28.33 (28.10 to 28.50)", r"28.33\* (28.10 to 28.50)"]
    assert table["objects read from reconstructions / from true renders"][1] == "0.750 (0.700 to 0.800)"
    assert table["questions: color yes no"][:2] == ["250", "0.700 (0.600 to 0.800)"]
    assert table["GenEval-style: colors"][1] == "0.438 (0.300 to 0.580), ceiling 0.854"
    assert table["**GenEval-style: overall**"][0] == "500 / 6"
    assert table["**GenEval-style: overall**"][2] == r"**0.500\*** (0.380 to 0.470), ceiling 0.900"
    assert table["semantic codes used"] == ["1,000", "0.96", r"0.96\*"]
    assert table["MME count, of 200"][0] == "200" and table["**MME, of 200**"][1] == "**150.0** (140.0 to 160.0)"
    assert table["seconds for one picture"] == ["", "-", "-"]
    assert table["OCR, of 200"] == ["40", r"130.0\* (100.0 to 160.0)", "-"]
    assert table["**perception, of 2,000**"] == ["", "**-**", "-"]
    assert "a part of the set alone" in ended.out
    assert "- A: `python eval/scenes.py --model 'A'`, commit abcdef0 with changes, seed 0, weights 0123" in ended.out


def test_a_tokenizer_alone_shows_what_drawing_through_it_could_reach(program, call, tmp_path):
    content = scenes("TOKENIZER")
    for of_models in ("pope", "geneval"):
        del content[of_models]
    save(tmp_path / "scenes.json", content)
    table = table_of(call(program, tmp_path).out)
    assert table["**GenEval-style: overall**"] == ["", "**0.900**"] and table["GenEval-style: colors"] == ["", "0.854"]
    assert table["**Scenes, test split, seed 0: ceilings of drawing**"] == ["", ""]


def test_what_a_tokenizer_of_latents_does_not_have_is_left_out(program, call, tmp_path):
    content = scenes("CHEERS")
    del content["semantic_code_use"], content["flat_code_use"]
    save(tmp_path / "scenes.json", content)
    autoencoder = facts("reconstruction", "VAE", data="FOLDER", resolution=16, num_pictures=4, frechet={}) | {
        "psnr": 30.0, "ssim": 0.9, "intervals": {"psnr": [29, 31], "ssim": [0.8, 0.95]}
    }  # fmt: skip
    save(tmp_path / "reconstruction.json", autoencoder)
    ended = call(program, tmp_path)
    table = table_of(ended.out)
    assert ended.err == "" and table["measure"] == ["samples", "VAE", "CHEERS"] and "flat codes used" not in table


def test_scenes_of_another_reader_are_not_compared(program, call, tmp_path):
    save(tmp_path / "a.json", scenes("A", reader="unimllm/default/reader"))
    save(tmp_path / "b.json", scenes("B", reader="runs/reader_256"))
    out = call(program, tmp_path).out
    assert "**Scenes, test split, seed 0: reconstruction**" in out
    assert "**Scenes, test split, seed 0, reader runs/reader_256: reconstruction**" in out


def test_results_over_other_data_of_one_name_are_not_compared(program, call, tmp_path):
    told = {"glyphs_digest": "g1", "reader_fingerprint": "r1"}
    save(tmp_path / "old.json", scenes("OLD"))  # does not tell, and stays beside all
    save(tmp_path / "a.json", scenes("A", **told))
    save(tmp_path / "b.json", scenes("B", **told))
    group, n = "Scenes, test split, seed 0: reconstruction", 1000
    groups = table_of(call(program, tmp_path).out)
    assert f"**{group}**" in groups and not any("g1" in name for name in groups)
    save(tmp_path / "b.json", scenes("B", **told | {"glyphs_digest": "g2"}))
    groups = table_of(call(program, tmp_path).out)
    assert {f"**{group}**", f"**{group} (glyphs g1)**", f"**{group} (glyphs g2)**"} <= set(groups)

    for name, digest in (("a", "p1"), ("b", "p2")):
        rebuilt = facts("reconstruction", name, data="FOLDER", resolution=16, num_pictures=n, frechet={}) | {
            "psnr": 30.0, "intervals": {"psnr": [29, 31]}, "pictures_fingerprint": digest,
        }  # fmt: skip
        save(tmp_path / "rebuilt" / f"{name}.json", rebuilt)
        save(tmp_path / "part" / f"{name}.json", rebuilt | {"limit": 3, "limited": True})
    group = "Reconstruction of FOLDER, 16 x 16"
    groups = table_of(call(program, tmp_path / "rebuilt").out)
    assert f"**{group} (pictures p1)**" in groups and f"**{group} (pictures p2)**" in groups
    assert f"**{group}**" in table_of(call(program, tmp_path / "part").out)  # marked as a part


def test_a_digest_is_of_the_questions_of_a_whole_set():
    split = {"questions_fingerprint": "q"}
    assert told_data({"splits": {"random": split}, "pictures_fingerprint": "p"}) == {
        "pictures": "p", "random questions": "q",
    }  # fmt: skip
    assert told_data({"splits": {"random": split}, "limit": 3, "glyphs_digest": "g"}) == {"glyphs": "g"}
    assert told_data({"questions_fingerprint": "q", "missing": ["OCR"]}) == {}
    assert told_data({"questions_fingerprint": "q", "missing": [], "incomplete": []}) == {"questions": "q"}


def test_timings_of_other_machines_are_not_compared(program, call, tmp_path):
    unknown = scenes("A")
    del unknown["device"]
    results = (scenes("A"), scenes("A", threads=1), scenes("A", device="cuda:0", gpu="a GPU"), unknown)
    for i, content in enumerate(results):
        save(tmp_path / f"{i}.json", content)
    out = call(program, tmp_path).out
    for machine in ("a CPU, 2 threads", "a CPU, 1 thread", "a GPU", "a CPU, 2 threads, or a GPU beside it"):
        assert f"**Scenes, test split, seed 0: speed on {machine}**" in out


def test_folders_of_pictures_and_probes_are_shown(program, call, tmp_path):
    distance = {"distance": 12.345, "kid_name": "KID", "kid_mean": 0.002}
    compared = facts("pictures", "A", reference="TRUE", size=None, num_pairs=2, num_reference=4, num_generated=3) | {
        "psnr": 100.0, "ssim": 1.0, "intervals": {"psnr": [100, 100], "ssim": [1, 1]}, "frechet": {"FID": distance}
    }  # fmt: skip
    save(tmp_path / "compare.json", compared)
    prompted = facts("pictures", "A", clip="CLIP", num_pictures=3, clip_score=31.5, intervals={"clip_score": [30, 33]})
    save(tmp_path / "clip.json", prompted)
    shares = {"continuous": 0.9, "quantised": 0.8, "cost": 0.1, "code": 0.5}
    probe = {
        "split": "test",
        "num_training_pictures": 4000,
        "num_pictures": 1000,
        "intervals": dict.fromkeys(shares, [0, 1]),
    }
    save(tmp_path / "features.json", facts("features", "A") | shares | probe)
    ended = call(program, tmp_path)
    table = table_of(ended.out)
    assert ended.err == "" and table["measure"] == ["samples", "A"]
    assert table["PSNR, dB"] == ["2", "100.00 (100.00 to 100.00)"] and table["FID, less is better"] == ["3", "12.35"]
    assert table["KID x 1000, less is better"][1] == "2.00"
    assert "**Pictures beside TRUE, sets of 4 and 3 pictures**" in table
    assert "**CLIPScore by CLIP**" in table and table["100 * max(cos, 0)"] == ["3", "31.50 (30.00 to 33.00)"]
    assert table["**what quantising costs**"] == ["1,000", "**0.100** (0.000 to 1.000)"]


def test_one_name_is_one_column_unless_it_measured_the_same_twice_or_is_another_model(program, call, tmp_path):
    save(tmp_path / "1.json", scenes("A"))
    save(tmp_path / "2.json", scenes("A", seed=1))
    assert table_of(call(program, tmp_path).out)["measure"] == ["samples", "A"]
    save(tmp_path / "3.json", scenes("A"))
    assert table_of(call(program, tmp_path).out)["measure"] == ["samples", "A (1)", "A (3)"]
    for name in ("1", "3"):
        (tmp_path / f"{name}.json").unlink()
    save(tmp_path / "4.json", scenes("A", fingerprint="ffff"))
    assert table_of(call(program, tmp_path).out)["measure"] == ["samples", "A (0123456789abcdef)", "A (ffff)"]


@pytest.mark.parametrize(
    ("files", "labels"),
    [
        (("a/1/x.json", "b/1/x.json"), ("a", "b")),
        (("long_name_a/1.json", "long_name_b/2.json"), ("1", "2")),
        (("a.json", "b/a.json", "b/c/a.json"), ("a", "b/a", "c/a")),
        (("a/x.json", "b/x.json", "b/y.json"), ("a/x", "b/x", "b/y")),
        (("a.json", "a.txt"), ("a.json", "a.txt")),
    ],
)
def test_runs_of_one_name_are_told_apart_by_as_little_of_their_files_as_will_do(files, labels):
    assert shortest_labels([Path(file) for file in files]) == list(labels)


def test_a_run_s_facts_are_those_of_the_drawing(program, call, tmp_path):
    drawn = {"seed": 7, "sampling": {"guidance_scale": 4.0}, "commit": "fedcba9876", "dtype": "bfloat16",
             "device": "cuda", "gpu": "a GPU"}  # fmt: skip
    scored = facts("geneval", "A", benchmark="GenEval", detector="D", generation=drawn, scores={"overall": 0.5}) | {
        "intervals": {"overall": [0.4, 0.6]}, "num_pictures": 4, "num_prompts": 1, "num_pictures_by_tag": {},
        "correct_pictures": 0.5, "correct_prompts": 1.0,
    }  # fmt: skip
    save(tmp_path / "scored.json", scored)
    save(tmp_path / "asked.json", mme("A", dtype="float32"))
    out = call(program, tmp_path, "--html", tmp_path / "report.html", "--markdown", "-").out
    told = "drawn at commit fedcba9, seed 7, weights 0123456789abcdef, bfloat16 on a GPU, guidance scale 4.0"
    assert f"- A: `python eval/geneval.py --model 'A'`, {told}\n" in out
    assert "commit abcdef0 with changes, seed 0, answers 0123456789abcdef, float32 on cpu\n" in out
    text = (tmp_path / "report.html").read_text()
    for name, value in (("seed of the drawing", "7"), ("device of the drawing", "a GPU"), ("dtype", "float32")):
        assert f"<dt>{name}</dt><dd>{value}</dd>" in text
    save(tmp_path / "scored.json", scored | {"generation": {"seed": 7}})  # as earlier versions wrote it
    assert "drawn at commit unknown, seed 7, weights 0123456789abcdef\n" in call(program, tmp_path).out


def test_names_are_whole_on_the_page(program, call, tmp_path):
    for run in ("one", "two"):
        save(tmp_path / run / "scenes.json", scenes("runs/a_model_of_a_long_name/step-000123"))
    assert call(program, tmp_path, "--html", tmp_path / "report.html").code == 0
    text = (tmp_path / "report.html").read_text()
    assert "</span>runs/a_model_of_a_long_name/step-000123 (two)</td>" in text and "ellipsis" not in text


def test_what_is_no_result_is_named(program, call, two):
    (two / "broken.json").write_text('{"program": ')
    save(two / "speed.json", {"program": "eval/speed.py"})
    save(two / "cut.json", facts("mme", "B"))
    save(two / "words.json", scenes("B", ssim="high"))
    save(two / "list.json", [1])
    save(two / "pictures" / "generation.json", {"seed": 0})
    old = scenes("C")
    for name in ("program", "fingerprint", "versions"):
        del old[name]
    save(two / "old.json", old)
    ended = call(program, two)
    assert ended.code == 0 and len(table_of(ended.out)["measure"]) == 4
    first, second = ended.err.splitlines()
    assert "old.json does not tell program, fingerprint, versions" in first
    assert "5 of 9 files are not shown" in second and "generation" not in second
    for words in (
        "broken.json is no JSON", "speed.json is of 'eval/speed.py', which is none of", "it lacks 'subtasks'",
        "'SSIM' is 'high', no number", "list.json is of none of",
    ):  # fmt: skip
        assert words in second


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, "{}", json.dumps(scenes("B", psnr=float("nan"))), json.dumps(scenes("B", gallery={"folder": 1})),
     json.dumps(scenes("B", gallery={"drawings": [{"filename": "x"}]})), json.dumps(scenes("B", intervals=[])),
     json.dumps(scenes("B", gallery={"questions": ["x"]})), json.dumps(facts("geneval", "B", benchmark=[])),
     json.dumps({"program": ["x"]})],
)  # fmt: skip
def test_damage_is_one_line(program, call, tmp_path, text):
    (tmp_path / "damaged.json").write_text(text)
    assert "damaged.json" in call(program, tmp_path).refusal()
    save(tmp_path / "whole.json", scenes("\ud800"))
    ended = call(program, tmp_path, "--html", tmp_path / "report.html", "--markdown", "-")
    assert ended.code == 0 and "1 of 2 files are not shown" in ended.err and table_of(ended.out)["measure"][1] == "?"


def test_without_results_there_is_one_line(program, call, tmp_path):
    assert "no results in" in call(program, tmp_path).refusal()
    assert "no such file or folder" in call(program, tmp_path / "none").refusal()
    assert "the folder of results is missing" in call(program).refusal()
    save(tmp_path / "x.json", {})
    assert "x.json is of none of eval/scenes.py" in call(program, tmp_path).refusal()


# ---- the page ------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Elements and text of a page; what is opened must be closed."""

    def __init__(self, text: str):
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def of_class(self, name: str) -> list[dict]:
        return [attrs for _, attrs in self.found if name in (attrs.get("class") or "").split()]


def test_the_page_holds_bars_whiskers_and_failures_of_both_models(program, call, two, tmp_path):
    out = tmp_path / "report.html"
    ended = call(program, two, "--html", out, "--markdown", tmp_path / "table.md")
    assert ended.code == 0 and ended.out == ""
    assert [line.split(": ")[0] for line in ended.err.splitlines()] == [str(out), str(tmp_path / "table.md")]
    assert table_of((tmp_path / "table.md").read_text())["measure"][1] == "A"
    text = out.read_text()
    page = Page(text)
    assert EVIL in page.text and "A" in page.text and "<script" not in text
    assert not [attrs for tag, attrs in page.found if tag == "link" or attrs.get("src", "data:")[:5] != "data:"]
    assert len(page.of_class("bar")) == 15 * 2 + 2 and len(page.of_class("whisker")) == 11 * 2 + 2
    assert {"left:30.00%;width:28.00%", "left:38.00%;width:9.00%"} <= {a["style"] for a in page.of_class("whisker")}
    assert {a["style"] for a in page.of_class("ceiling")} == {"left:85.40%", "left:90.00%"}
    assert len(page.of_class("right")) == 2 and len(page.of_class("wrong")) == 3  # drawing, question; wrong answer
    for words in ("wrong: 0 dog found, 1 wanted", "seen: red dog", "wrong: blue", "expected: red", "a photo of a dog"):
        assert words in page.text
    assert "0.500*" in page.text and "a part of the set" in page.text
    assert sum(tag == "img" for tag, _ in page.found) == 5


def test_warnings_stand_under_both_reports(program, call, tmp_path):
    warned = scenes("A", warnings=["FD of 6 pictures is <biased>"])
    save(tmp_path / "a.json", warned)
    save(tmp_path / "b.json", scenes("B", warnings=3))  # damaged
    ended = call(program, tmp_path, "--html", tmp_path / "report.html", "--markdown", "-")
    assert ended.out.count("Warning") == 1 and "\n  - Warning: FD of 6 pictures is &lt;biased>.\n" in ended.out
    page = Page((tmp_path / "report.html").read_text())
    assert "Warning: FD of 6 pictures is <biased>." in page.text and len(page.of_class("note")) == 1


def test_a_psnr_that_is_null_is_shown_beside_a_number(program, call, tmp_path):
    for name, psnr, interval in (("null", None, [None, None]), ("A", 20, [10, 30])):
        content = scenes(name)
        content["intervals"]["psnr"] = interval
        save(tmp_path / f"{name}.json", content | {"psnr": psnr})
    ended = call(program, tmp_path, "--html", tmp_path / "report.html", "--markdown", "-")
    assert table_of(ended.out)["PSNR, dB"][1:] == ["20.00 (10.00 to 30.00)", "-"]
    page = Page((tmp_path / "report.html").read_text())
    assert page.of_class("bar")[0]["style"].split(";")[1] == "width:63.49%"  # the scale ends at 1.05 * 30
    assert page.of_class("whisker")[0]["style"] == "left:31.75%;width:63.49%"


def test_pictures_that_are_gone_are_told(program, call, two, tmp_path):
    (two / "b" / "00000" / "samples" / "0000.png").write_bytes(b"x")
    ended = call(program, two, "--html", tmp_path / "report.html")
    assert "1 pictures are not shown" in ended.err
    assert "no picture 0000.png" in Page((tmp_path / "report.html").read_text()).text


def test_a_prompt_that_one_model_did_not_draw_leaves_a_gap(program, call, two, tmp_path):
    content = json.loads((two / "b.json").read_text())
    content["gallery"]["drawings"][0]["prompt"] = "a photo of a cat"
    save(two / "b.json", content)
    assert call(program, two, "--html", tmp_path / "report.html").code == 0
    assert len(Page((tmp_path / "report.html").read_text()).of_class("absent")) == 2


def test_drawings_of_another_split_are_others(program, call, tmp_path):
    for split, right in (("test", True), ("validation", False)):
        gallery = save_gallery(tmp_path / "results" / split, right)
        save(tmp_path / "results" / f"{split}.json", scenes("A", split=split, gallery=gallery))
    assert call(program, tmp_path / "results", "--html", tmp_path / "report.html").code == 0
    text = (tmp_path / "report.html").read_text()
    for split in ("test", "validation"):
        assert f"Scenes, {split} split, seed 0: the first prompts" in text
    assert "0 dog found, 1 wanted" in text


# ---- what results carry --------------------------------------------------------------------------------------------


def test_galleries_take_the_first_of_each_and_the_first_wrong_ones():
    assert first_of_each("aababb", 2) == [0, 1, 2, 4]
    files = [f"{i:05d}/samples/{k:04d}.png" for i in range(9) for k in range(2)]
    prompts = [{"tag": "colors", "prompt": str(i // 2)} for i in range(18)]
    rows = first_drawings(files, prompts, [["few"] if i == 2 else [] for i in range(18)], str)
    assert [row["filename"] for row in rows] == files[:16:2] and [row["found"] for row in rows][1] == "2"
    assert [row["correct"] for row in rows] == [True, False, *[True] * 6] and rows[1]["reason"] == "few"
    kept = kept_questions([{"kind": "color", "correct": i != 5, "n": i} for i in range(9)])
    assert [[row["n"] for row in rows] for rows in kept.values()] == [[0, 1], [5]]
    assert folder_from(Path("a/x.json"), Path("a/b")) == "b" and folder_from(Path("x.json"), Path("../b")) == "../b"


def test_fingerprints_tell_weights_apart(tmp_path):
    (tmp_path / "model-2.safetensors").write_bytes(b"2")
    (tmp_path / "model-1.safetensors").write_bytes(b"1")
    (tmp_path / "config.json").write_bytes(b"3")
    both = fingerprint(tmp_path / "model-1.safetensors", tmp_path / "model-2.safetensors")
    assert weights_fingerprint(tmp_path) == both and len(both) == 16
    assert weights_fingerprint(tmp_path / "none") is None


def test_other_questions_detectors_and_prompts_are_in_other_groups():
    def group(program: str, result: dict) -> str:
        return next(MEASURES[f"eval/{program}.py"](result)).group

    scores = {"accuracy": 0.5, "f1": 0.5, "yes_ratio": 0.5}
    split = {"num_questions": 3, "official": scores, "strict": scores}
    nothing = {"random": {parsing: dict.fromkeys(scores) for parsing in ("official", "strict")}}

    def pope(file: str, **others) -> str:
        return group("pope", {"splits": {"random": split | {"file": file}}, "intervals": nothing} | others)

    assert pope("random.json") == "POPE, official parsing"
    assert pope("coco_pope_random.json") == "POPE (coco_pope), official parsing"
    older = {"random": split | {"file": "coco_pope_random.json", "num_questions": 2910}}
    told = group("pope", {"splits": older, "intervals": nothing})
    assert told == "POPE (coco_pope, older random file), official parsing"
    asked = pope("gqa_pope_random.json", suffix="\nAnswer with one word.")
    assert asked == "POPE (gqa_pope, questions followed by 'Answer with one word.'), official parsing"
    mme = {"perception": None, "cognition": None, "intervals": {}, "subtasks": {}}
    assert group("mme", mme) == group("mme", mme | {"suffix": " Please answer yes or no."}) == "MME"
    asked = group("mme", mme | {"suffix": "\nAnswer with one\nword."})
    assert asked == "MME (questions followed by 'Answer with one word.')"
    assert group("mme", mme | {"suffix": ""}) == "MME (questions followed by '')"

    drawn = {"benchmark": "GenEval", "scores": {"overall": 0.5}, "intervals": {"overall": None}, "num_pictures": 2212,
             "num_pictures_by_tag": {}, "num_prompts": 553, "detector": "D", "prompts_digest": OWN_PROMPTS}  # fmt: skip
    assert group("geneval", drawn) == "GenEval, D"
    assert group("geneval", drawn | {"prompts_digest": "abc"}) == "GenEval, D, other prompts (abc)"
    assert group("geneval", drawn | {"prompts_digest": "abc", "num_prompts": 9}) == "GenEval, D"  # a part of them
    shares = {"continuous": 0.9, "quantised": 0.8, "cost": 0.1, "code": 0.5}
    probe = shares | {"split": "test", "seed": 0, "num_training_pictures": 9, "num_pictures": 3,
                      "intervals": dict.fromkeys(shares)}  # fmt: skip
    rebuilt = {"data": "scenes", "split": "test", "resolution": 64, "num_pictures": 3, "psnr": 20.0, "frechet": {},
               "intervals": {"psnr": [19.0, 21.0]}}  # fmt: skip
    world = {"image_size": 32, "num_classes": 8, "classes_digest": "abc"}
    told = "Objects that a linear probe names, scenes, test split, seed 0"
    assert group("features", probe) == f"{told}, trained on 9 pictures"
    assert group("features", probe | world) == f"{told}, 8 objects (abc), 32 x 32, trained on 9 pictures"
    assert group("reconstruction", rebuilt) == "Reconstruction of scenes, test split, 64 x 64"
    told = "Reconstruction of scenes, test split, 8 objects (abc), 64 x 64"
    assert group("reconstruction", rebuilt | world) == told

    def sets(**changes) -> list[str]:
        distance = {"distance": 1.0, "kid_name": "KD", "kid_mean": 0.1} | changes
        content = rebuilt | {"frechet": {"FD(own SigLIP)": distance}, "num_pictures": 1000, "ssim": 1}
        content["intervals"] = rebuilt["intervals"] | {"ssim": [1, 1]}
        return [measure.group for measure in MEASURES["eval/reconstruction.py"](content)][2:]

    told = "Reconstruction of scenes, test split, 64 x 64"
    assert sets() == [f"{told}, sets of 1,000 pictures", told]
    told += ", SigLIP 12ab"  # a Frechet distance goes by the number of pictures, a kernel distance does not
    library = "transformers 5.0, SigLIP 12ab, mean of patch features; for tokenizers over one SigLIP only"
    assert sets(library=library) == [f"{told}, sets of 1,000 pictures", told]

    clip = {"clip": "C", "clip_score": 30, "intervals": {"clip_score": None}, "num_pictures": 2212}
    assert group("pictures", clip | {"prompts_digest": "abc"}) == "CLIPScore by C, 2,212 prompts (abc)"
