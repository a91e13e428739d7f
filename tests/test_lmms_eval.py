"""The lmms-eval plugin: requests by hand on a tiny random model, and the package itself where it is installed."""

import json
import math
import re
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import load_program
from PIL import Image

from unimllm.errors import UserError
from unimllm.inference import answer, draw
from unimllm.lmms_eval_requests import (
    Asked,
    answer_asked,
    answer_rounds,
    chat_messages,
    continuation_losses,
    cut,
    draw_asked,
    read_chat,
    read_continuation,
    read_options,
    read_simple,
    user_turn,
)
from unimllm.metrics import mme
from unimllm.metrics.geneval import TAGS, Detection
from unimllm.scenes import GlyphAtlas
from unimllm.scenes.examination import picture_seed

TASKS = Path(__file__).parents[1] / "eval" / "tasks"
RED, BLUE = (Image.new("RGB", (16, 16), color) for color in ("red", "blue"))
DOCS = [
    {"q": "Is there a dog in the image?", "images": [RED]},
    {"q": "What color is the apple? red green blue yellow", "images": [BLUE]},
    {"q": "yes no", "images": []},
    {"q": "What is in the picture?", "images": [RED, BLUE]},
]
TASK_DICT = {"toy": {"test": DOCS}}
NAMED = "question 0 of toy"


def pictures_of(doc: dict) -> list:
    return doc["images"]


def messages_of(doc: dict) -> list[dict]:
    parts = [{"type": "image", "url": image} for image in doc["images"]]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": doc["q"]}]}]


def simple(doc_id: int, *more, **options) -> tuple:
    return (DOCS[doc_id]["q"], {"max_new_tokens": 6} | options, pictures_of, *more, doc_id, "toy", "test")


def kinds(messages: list[dict]) -> list:
    return [[part.get("text", part.get("image")) for part in message["content"]] for message in messages]


# ---- requests to conversations -------------------------------------------------------------------------------------


def test_pictures_stand_before_the_text_or_where_it_marks_them():
    assert kinds(user_turn(NAMED, "Same?", [RED, BLUE])) == [[RED, BLUE, "Same?"]]
    assert kinds(user_turn(NAMED, "<image> or <image>?", [RED, BLUE])) == [[RED, " or ", BLUE, "?"]]
    assert kinds(user_turn(NAMED, "Hello", None)) == [["Hello"]]
    with pytest.raises(UserError, match="question 0 of toy: its text marks 1 pictures, the task gives 2"):
        user_turn(NAMED, "<image>?", [RED, BLUE])
    with pytest.raises(UserError, match="gives str; is it about videos"):
        user_turn(NAMED, "What happens?", ["film.mp4"])


def test_chat_messages_keep_their_order_and_roles():
    image = {"type": "image", "url": RED}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "First"}, image, {"type": "text", "text": "then?"}]},
        {"role": "assistant", "content": "red"},
        {"role": "user", "content": [image, {"type": "text", "text": "In <image>?"}]},
    ]
    ours = chat_messages(NAMED, messages)
    assert kinds(ours) == [["First", RED, "then?"], ["red"], ["In ", RED, "?"]]
    assert [m["role"] for m in ours] == ["user", "assistant", "user"]
    with pytest.raises(UserError, match="holds video"):
        chat_messages(NAMED, [{"role": "user", "content": [{"type": "video", "url": "film.mp4"}]}])


def test_both_interfaces_ask_the_same():
    for doc_id in range(len(DOCS)):
        chat = read_chat(("", messages_of, {"max_new_tokens": 6}, doc_id, "toy", "test"), TASK_DICT)
        other = read_simple(simple(doc_id), TASK_DICT)
        assert (chat.name, chat.messages, chat.options) == (other.name, other.messages, other.options)


def test_options_of_a_task():
    given = {"until": "\n", "max_new_tokens": 5, "temperature": 0, "top_p": 1.0, "num_beams": 2, "do_sample": False}
    assert read_options(NAMED, given) == (("\n",), {"max_new_tokens": 5, "num_beams": 2})
    assert read_options(NAMED, {"temperature": 0.7, "do_sample": False}) == ((), {})  # as long as the model's are
    for sampled in ({"do_sample": True}, {"temperature": 0.2}):
        with pytest.raises(UserError, match="question 0 of toy: the task samples .* --gen_kwargs do_sample=False"):
            read_options(NAMED, sampled)


def test_an_answer_ends_before_the_first_of_its_stops():
    assert cut("a red apple. And", (".", " apple")) == "a red"
    assert cut("a red apple", ()) == cut("a red apple ", ("\n\n", "")) == "a red apple"


# ---- answers -------------------------------------------------------------------------------------------------------


def test_batched_answers_are_those_of_one_by_one(loaded):
    asked = [read_simple(simple(i), TASK_DICT) for i in (0, 1, 2, 3, 2, 0)]
    alone = [answer_asked(*loaded, [a], 1)[0] for a in asked]
    assert answer_asked(*loaded, asked, 4) == alone
    assert alone[0] == answer(*loaded, RED, DOCS[0]["q"], max_new_tokens=6)
    assert len(set(alone)) > 1


def test_a_long_neighbour_does_not_shorten_an_answer(loaded):
    model, processor = loaded
    context = model.config.text_config.max_position_embeddings
    short = user_turn(NAMED, "dog", [])
    room = context - len(processor.conversation.prompt(short))
    words = next(n for n in range(1, context) if length(processor, n) > context - 4)
    long = user_turn(NAMED, " ".join(["dog"] * (words - 1)), [])
    asked = [Asked("a", short, (), {"max_new_tokens": room}), Asked("b", long, (), {"max_new_tokens": room})]
    assert answer_asked(*loaded, asked, 2) == [answer_asked(*loaded, [a], 1)[0] for a in asked]
    with pytest.raises(UserError, match="^c is too long"):
        answer_asked(*loaded, [asked[0], Asked("c", user_turn("c", "dog " * (2 * words), []))], 2)


def length(processor, words: int) -> int:
    return len(processor.conversation.prompt(user_turn(NAMED, " ".join(["dog"] * words), [])))


def test_an_empty_question_is_an_error_and_no_empty_answer(loaded):
    with pytest.raises(UserError, match="the question is empty"):
        answer_asked(*loaded, [Asked("a", user_turn("a", " ", [RED]))], 1)


def test_rounds_go_on_until_the_task_ends_them(loaded):
    calls = []

    def doc_to_text(doc, previous_output=None, round_idx=None, previous_round_info=None):
        calls.append((doc["q"], round_idx, len(previous_output), previous_round_info))
        done = round_idx > len(doc["images"])
        return doc["images"], None if done else "What is in the picture?", done, previous_output, round_idx

    asked = [read_simple(simple(i, doc_to_text), TASK_DICT) for i in (0, 2)]
    answers = answer_rounds(*loaded, asked, 2)
    assert [len(rounds) for rounds in answers] == [2, 1]  # with one picture there is a second question about it
    assert answers[0] == [answer(*loaded, RED, q, max_new_tokens=6) for q in (DOCS[0]["q"], DOCS[3]["q"])]
    first, text = DOCS[0]["q"], DOCS[2]["q"]
    assert calls == [(first, 1, 1, None), (text, 1, 1, None), (first, 2, 2, 1)]


def test_rounds_of_the_chat_interface(loaded):
    def doc_to_messages(doc, round_idx=None, previous_output=None, previous_round_info=None):
        if round_idx is None:
            return messages_of(doc)
        return messages_of(DOCS[round_idx]), round_idx == 2, previous_output, previous_round_info

    asked = read_chat(("", doc_to_messages, {"max_new_tokens": 6}, 0, "toy", "test"), TASK_DICT)
    (rounds,) = answer_rounds(*loaded, [asked], 1)
    assert rounds == answer_asked(*loaded, [read_simple(simple(i), TASK_DICT) for i in (0, 1)], 1)


# ---- losses --------------------------------------------------------------------------------------------------------


def test_the_loss_is_the_models_own_and_lower_for_what_it_says(loaded):
    model, processor = loaded
    texts = ["red", "a blue car", "yes"]
    requests = [(DOCS[i]["q"], text, pictures_of, i, "toy", "test") for i, text in enumerate(texts)]
    wanted = [read_continuation(arguments, TASK_DICT) for arguments in requests]
    batched = continuation_losses(model, processor, wanted, 3)
    for (asked, text), (loss, _) in zip(wanted, batched, strict=True):
        messages = [*asked.messages, {"role": "assistant", "content": text}]
        sample = processor.conversation(messages)
        ids = torch.tensor([sample.input_ids])
        labels = ids.where(torch.tensor([sample.is_target]), -100)
        images = [p["image"] for p in asked.messages[0]["content"] if p["type"] == "image"]
        pixel_values = processor.preprocess_images(images) if images else None
        with torch.no_grad():
            own = model(input_ids=ids, pixel_values=pixel_values, labels=labels).losses["text"]
        assert loss == pytest.approx(own.item(), abs=1e-5)
    assert read_continuation((*requests[0][:1], lambda doc: doc["q"], *requests[0][2:]), TASK_DICT)[1] == DOCS[0]["q"]


def test_greedy_is_told(loaded, monkeypatch):
    model, processor = loaded
    asked = read_simple(simple(0), TASK_DICT)
    sample = processor.conversation([*asked.messages, {"role": "assistant", "content": "yes"}])
    first = sample.is_target.index(True)
    vocabulary = model.config.text_config.vocab_size

    def forward(input_ids, logits_to_keep, **kwargs):
        logits = torch.zeros(len(input_ids), input_ids.shape[1], vocabulary)
        for position in range(first - 1, len(sample) - 1):
            logits[:, position, sample.input_ids[position + 1]] = 50.0
            logits[:, position, model.config.image_token_id] = 60.0  # which `generate` never says
        return SimpleNamespace(logits=logits[:, -logits_to_keep:])

    stand_in = type("Model", (), {"__call__": staticmethod(forward), "config": model.config, "device": model.device})()
    ((_, said),) = continuation_losses(stand_in, processor, [(asked, "yes")], 1)
    ((_, other),) = continuation_losses(stand_in, processor, [(asked, "no")], 1)
    assert (said, other) == (True, False)


# ---- the package and its tasks -------------------------------------------------------------------------------------


def load_tasks(name: str):
    pytest.importorskip("datasets")
    return load_program(f"eval/tasks/{name}.py")


@pytest.fixture
def scenes_tasks(monkeypatch, fake_atlas):
    """The scenes are drawn with hand-made glyphs."""
    monkeypatch.setattr(GlyphAtlas, "from_font", lambda names, font_path=None: fake_atlas)
    return load_tasks("scenes_tasks")


def test_scenes_pope_asks_what_eval_scenes_asks(scenes_tasks):
    from unimllm.scenes.examination import pope_set

    sets = [{"negatives": split, "count": 12, "seed": 0} for split in ("random", "adversarial")]
    docs = scenes_tasks.pope_docs(sets)
    world, renderer = scenes_tasks.open_world()
    questions = pope_set(world, 0, "adversarial", 12)
    assert len(docs) == 24 and len(set(docs["question_id"])) == 24
    assert docs["question"][12:] == [q.text for _, q in questions.asked]
    assert docs["answer"][12:] == [q.answer for _, q in questions.asked]
    scene = questions.scenes[questions.asked[5][0]]
    assert np.array_equal(np.asarray(docs[17]["image"]), renderer.render(scene))


def test_scenes_mme_asks_what_eval_scenes_asks_and_scores_alike(scenes_tasks, capsys):
    from unimllm.scenes.examination import MME_KINDS, mme_set

    scores = load_tasks("mme_scores")
    docs = scenes_tasks.mme_docs([{"task": task, "num_pictures": 3, "seed": 0} for task in MME_KINDS])
    world, renderer = scenes_tasks.open_world()
    answers = ["yes", "no", "No.", "yes", "maybe", "no"]  # of each sub-task: pairs of one picture
    entries, expected = [], {}
    for number, task in enumerate(MME_KINDS):
        questions = mme_set(world, 0, task, 3)
        of_task = docs.select(range(6 * number, 6 * number + 6))
        assert of_task["question"][:] == [q.text for _, q in questions.asked] and of_task["set"][:] == [task] * 6
        assert np.array_equal(np.asarray(of_task[3]["image"]), renderer.render(questions.scenes[1]))
        rows = []
        for doc, (scene, question), said in zip(of_task, questions.asked, answers, strict=True):
            entered = scores.process_results(doc, [said])
            entries.append(entered["mme_total"])
            rows.append(mme.Answered(str(scene), question.text, question.answer, said))
        expected[task] = mme.score(rows)["score"]
    assert set(entered) == {f"mme_{name}" for name in scores.NAMES}
    named = re.findall(r"aggregation: !function mme_scores.(\w+)", (TASKS / "scenes_mme.yaml").read_text())
    assert named == list(scores.NAMES)
    assert [getattr(scores, task)(entries) for task in MME_KINDS] == list(expected.values())
    assert scores.total(entries) == pytest.approx(sum(expected.values()))
    assert capsys.readouterr().err == "" and scores.existence(entries[:6]) == expected["existence"]
    assert math.isnan(scores.color(entries[:6])) and math.isnan(scores.total(entries[:22]))  # --limit 22
    assert "note: 22 of 24 questions of MME were asked (--limit)" in capsys.readouterr().err


def test_scenes_mme_by_hand():
    scores = load_tasks("mme_scores")
    # Picture a: both right. Picture b: one right. Of the other sub-task, picture a: none right.
    said = [("count", "a", "yes", "Yes"), ("count", "b", "no", "no"), ("count", "a", "no", "no"),
            ("count", "b", "yes", "no"), ("color", "a", "yes", "red"), ("color", "a", "no", "yes")]  # fmt: skip
    entries = [
        scores.entry_of(
            {"set": task, "picture": picture, "question": "?", "answer": label, "num_questions": len(said)}, [text]
        )
        for task, picture, label, text in said
    ]
    assert scores.count(entries) == 100 * 3 / 4 + 100 / 2 and scores.color(entries) == 0
    assert scores.total(entries) == 125
    assert scores.acc(entries) == 3 / 6 and scores.acc_plus(entries) == pytest.approx(1 / 3)
    for metric in (scores.acc, scores.count, scores.total):
        with pytest.raises(SystemExit, match="error: MME asks .* count has one alone: make --limit even"):
            metric(entries[:3])


def test_scenes_vqa_asks_every_kind_and_wants_the_right_words(scenes_tasks):
    from unimllm.scenes.language import KINDS

    docs = scenes_tasks.vqa_docs([{"count": 2 * len(KINDS), "seed": 0}])
    assert docs["set"][:] == [*KINDS, *KINDS]
    doc = {"set": "color", "answer": "red"}
    assert scenes_tasks.vqa_results(doc, ["Red."]) == {"accuracy": 1.0, "accuracy_color": 1.0}
    assert scenes_tasks.vqa_results(doc, ["dark red"]) == {"accuracy": 0.0, "accuracy_color": 0.0}
    named = re.findall(r"metric: accuracy_(\w+)", (TASKS / "scenes_vqa.yaml").read_text())
    assert named == list(KINDS)


def test_pope_scores_by_hand():
    scores = load_tasks("pope_scores")
    said = [("random", "yes", "Yes"), ("random", "no", "no"), ("popular", "yes", "no"), ("popular", "no", "a cat")]
    entries = []
    for split, label, text in said:
        entered = scores.process_results({"set": split, "answer": label}, [text])
        entries.append(entered["pope_f1"])
    assert set(entered) == {f"pope_{name}" for name in scores.NAMES}
    assert scores.accuracy(entries) == 0.5 and scores.yes_ratio(entries) == 0.5
    assert scores.f1_random(entries) == 1 and scores.f1_popular(entries) == 0
    assert math.isnan(scores.f1_adversarial(entries))
    assert scores.mean_f1(entries) == 0.5
    assert scores.precision(entries) == scores.recall(entries) == 0.5
    words = [{"set": "random", "label": label, "answer": text} for label, text in (("yes", "yes."), ("yes", "a dog"))]
    assert scores.mean_f1(words) == 1 and scores.mean_f1_strict(words) == pytest.approx(2 / 3)


@pytest.fixture
def local_tasks(monkeypatch, tmp_path):
    for variable in ("POPE_FOLDER", "COCO_FOLDER", "MME_FOLDER"):
        monkeypatch.setenv(variable, str(tmp_path))
    return load_tasks("local_tasks")


def test_pope_local_reads_the_official_files(local_tasks, tmp_path, monkeypatch):
    rows = [
        {"question_id": n, "image": "a.jpg", "text": f"Is there a {what} in the image?", "label": label}
        for n, (what, label) in enumerate((("dog", "yes"), ("cat", "no")), 1)
    ]
    (tmp_path / "coco_pope_random.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(SystemExit, match="^error: question random-0: there is no picture .*a.jpg"):
        local_tasks.pope_docs([{"split": "random"}])
    RED.save(tmp_path / "a.jpg")
    docs = local_tasks.pope_docs([{"split": "random"}])
    assert docs["answer"][:] == ["yes", "no"] and docs["set"][:] == ["random"] * 2
    assert local_tasks.doc_to_text(docs[1], {"post_prompt": " In a word."}).endswith("a cat in the image? In a word.")
    assert local_tasks.doc_to_visual(docs[0])[0].size == RED.size
    with pytest.raises(SystemExit, match="holds 0 question files of the split 'popular'"):
        local_tasks.pope_docs([{"split": "popular"}])
    monkeypatch.delenv("COCO_FOLDER")
    with pytest.raises(SystemExit, match="^error: COCO_FOLDER= is no folder: set it to"):
        local_tasks.pope_docs([{"split": "random"}])


def test_mme_local_reads_both_layouts_and_scores_by_hand(local_tasks, tmp_path, capsys):
    places = {"existence": (".", "."), "code_reasoning": ("questions_answers_YN", "images")}
    with pytest.raises(SystemExit, match="holds no sub-task of MME"):
        local_tasks.mme_docs([{"group": "perception"}])
    for task, (texts, pictures) in places.items():
        for stem in ("a", "b"):
            for folder in (texts, pictures):
                (tmp_path / task / folder).mkdir(parents=True, exist_ok=True)
            RED.save(tmp_path / task / pictures / f"{stem}.png")
            (tmp_path / task / texts / f"{stem}.txt").write_text("Is it red?\tYes\nIs it blue?\tNo\n")
    docs = local_tasks.mme_docs([{"group": "perception"}, {"group": "cognition"}])
    assert docs["set"][:] == ["existence"] * 4 + ["code_reasoning"] * 4 and docs["answer"][:4] == ["yes", "no"] * 2
    scores, entries = load_tasks("mme_scores"), []
    for doc, said in zip(docs, ["Yes", "No", "yes", "yes", *["no"] * 4], strict=True):
        entries.append(scores.process_results_by_group(doc, [said]))
    perception = [entry["mme_perception"] for entry in entries[:4]]
    assert scores.total(perception) == 100 * 3 / 4 + 100 * 1 / 2  # 3 of 4 answers, 1 of 2 pictures
    assert math.isnan(scores.total(perception[:2]))
    assert scores.total([entry["mme_cognition"] for entry in entries[4:]]) == 50
    assert capsys.readouterr().err.startswith("note: 2 of 4 questions of MME were asked (--limit)")
    assert math.isnan(scores.group_total(perception))  # nine sub-tasks are missing
    assert "note: no total of MME's perception without count, position, color, " in capsys.readouterr().err
    whole = [entry | {"set": task, "num_questions": 40} for task in mme.PERCEPTION for entry in perception]
    assert scores.group_total(whole) == scores.total(whole) == 10 * scores.total(perception)
    assert math.isnan(scores.group_total(whole[:38]))  # of the last sub-task two questions
    (tmp_path / "existence" / "b.txt").write_text("Is it red?\tYes\n")
    with pytest.raises(SystemExit, match="b.txt is not MME's two lines"):
        local_tasks.mme_docs([{"group": "perception"}])


PROMPTS = [
    {"tag": "single_object", "include": [{"class": "dog", "count": 1}], "prompt": "a photo of a dog"},
    {"tag": "counting", "include": [{"class": "cup", "count": 2}], "prompt": "a photo of two cups"},
]


@pytest.fixture
def geneval_tasks(monkeypatch, tmp_path):
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in PROMPTS))
    for variable, value in (("PROMPTS", tmp_path / "prompts.jsonl"), ("DETECTOR", "mask2former"), ("CLIP", "clip")):
        monkeypatch.setenv(f"GENEVAL_{variable}", str(value))
    return load_tasks("geneval_tasks")


class Sees:
    """One dog in every picture, and one cup in the last."""

    def look(self, image, file, metadata):
        names = ["dog", "cup"] if file.endswith("3.png") else ["dog"]
        return SimpleNamespace(detections=lambda: [Detection(name, (0, 0, 8, 8)) for name in names])


def test_geneval_is_drawn_and_judged_by_its_rules(loaded, geneval_tasks, tmp_path, monkeypatch):
    monkeypatch.setattr(geneval_tasks, "open_detector", Sees)
    docs = geneval_tasks.docs([{"images_per_prompt": 2}])
    assert docs["question_id"][:] == ["00000/0000", "00000/0001", "00001/0000", "00001/0001"]
    task_dict = {"geneval": {"test": docs}}
    requests = [
        (doc["prompt"], {"max_new_tokens": 64}, geneval_tasks.doc_to_visual, i, "geneval", "test")
        for i, doc in enumerate(docs)
    ]
    asked = [read_simple(arguments, task_dict) for arguments in requests]
    assert [a.seed for a in asked] == [picture_seed(0, i, k) for i in (0, 1) for k in (0, 1)]  # of eval/geneval.py
    answers = draw_asked(*loaded, asked, 3, tmp_path / "drawn")
    paths = [Path(path) for answer in answers for path in json.loads(answer)["images"]]
    assert [path.name for path in paths] == [f"geneval_{i:05d}.png" for i in range(4)]
    assert len({path.read_bytes() for path in paths}) == 4  # a seed for each
    assert draw_asked(*loaded, asked[2:3], 1, tmp_path / "again") != answers[2:3]
    assert (tmp_path / "again" / "geneval_00002.png").read_bytes() == paths[2].read_bytes()  # alone or in a batch
    draw_asked(*loaded, asked[2:3], 1, tmp_path / "likely", {"temperature": 0})
    (likely,) = draw(*loaded, [docs[2]["prompt"]], [asked[2].seed], temperature=0)
    assert (np.asarray(Image.open(tmp_path / "likely" / "geneval_00002.png")) == np.asarray(likely)).all()
    assert read_simple(simple(2), TASK_DICT).seed == 2  # of a task that gives none

    entered = [geneval_tasks.process_results(doc, [said]) for doc, said in zip(docs, answers, strict=True)]
    entries = [entry["geneval_hf_overall"] for entry in entered]
    assert [entry["correct"] for entry in entries] == [True, True, False, False]
    assert math.isnan(geneval_tasks.overall(entries)) and geneval_tasks.single_object(entries) == 1
    others = [{"tag": tag, "correct": True} for tag in TAGS[1:] if tag != "counting"]
    assert geneval_tasks.overall(entries + others) == pytest.approx(5 / 6)
    assert geneval_tasks.counting(entries) == 0 and math.isnan(geneval_tasks.colors(entries))
    named = re.findall(r"metric: (\w+)", (TASKS / "geneval.yaml").read_text())
    assert set(named) == set(entered[0])
    with pytest.raises(SystemExit, match="^error: geneval, 00000/0000: .*no picture; for unimllm add draw_into=FOLDER"):
        geneval_tasks.process_results(docs[0], ["a dog"])
    monkeypatch.delenv("GENEVAL_CLIP")
    with pytest.raises(SystemExit, match="^error: GENEVAL_CLIP is not set: set it to a CLIP"):
        geneval_tasks.docs([{"images_per_prompt": 2}])


def test_a_detector_of_geneval_s_that_is_none_is_told_before_anything_is_drawn(geneval_tasks, tmp_path, monkeypatch):
    monkeypatch.setenv("GENEVAL_DETECTOR", str(tmp_path / "none"))
    with pytest.raises(SystemExit, match="^error: GENEVAL_DETECTOR .*none: no such folder"):
        geneval_tasks.docs([{"images_per_prompt": 2}])


def test_a_task_s_file_executed_again_opens_no_second_detector(geneval_tasks, monkeypatch):
    from unimllm.metrics.geneval_detector import GenEvalDetector

    monkeypatch.setenv("GENEVAL_DETECTOR", "opened once")
    monkeypatch.setattr(GenEvalDetector, "load", lambda *_: object())
    assert geneval_tasks.open_detector() is load_tasks("geneval_tasks").open_detector()


def test_a_picture_is_drawn_from_words_alone(loaded, tmp_path):
    with pytest.raises(UserError, match="question 0 of toy: it shows a picture; unimllm draws from words alone"):
        draw_asked(*loaded, [read_simple(simple(0), TASK_DICT)], 1, tmp_path)


def test_the_entry_point_names_models_that_lmms_eval_takes(tiny_checkpoint, tmp_path):
    pytest.importorskip("lmms_eval")
    from unimllm.lmms_eval_model import UniMLLM, UniMLLMChat, manifests

    (manifest,) = manifests()
    assert (manifest.model_id, UniMLLM.is_simple, UniMLLMChat.is_simple) == ("unimllm", True, False)
    for options, message in (
        ({"pretraned": "x"}, "knows no 'pretraned' .did you mean 'pretrained'"),
        ({"temperature": 1}, "temperature is of drawing; add draw_into=FOLDER"),
        ({"draw_into": str(tmp_path), "num_steps": 3, "device": "cpu"}, "cannot draw with num_steps"),
        ({"batch_size": "auto"}, "--batch_size auto"), ({"dtype": "int8"}, "dtype=int8"),
        ({"pretrained": "./none", "device": "cpu"}, "--model_args pretrained ./none: no such folder"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            UniMLLM(**options)
    evaluated = UniMLLM.create_from_arg_string(f"pretrained={tiny_checkpoint},device=cpu", {"batch_size": 2})
    evaluated.task_dict = TASK_DICT
    requests = [SimpleNamespace(args=simple(i)) for i in (0, 1, 2)]
    assert evaluated.generate_until(requests) == answer_asked(
        evaluated.model, evaluated.processor, [read_simple(r.args, TASK_DICT) for r in requests], 1
    )
    assert evaluated.loglikelihood([]) == []
    drawing = UniMLLMChat(str(tiny_checkpoint), device="cpu", draw_into=str(tmp_path / "drawn"), temperature=0)
    assert drawing.sampling["temperature"] == 0
    drawing.task_dict = TASK_DICT
    (said,) = drawing.generate_until([SimpleNamespace(args=("", messages_of, {"max_new_tokens": 6}, 2, "toy", "test"))])
    assert json.loads(said)["images"] == [str(tmp_path / "drawn" / "toy_00002.png")]


def test_the_entry_point_is_declared():
    declared = [point.value for point in entry_points(group="lmms_eval.models") if point.name == "unimllm"]
    if not declared:
        pytest.skip("the installed unimllm is older than its entry point: install it again")
    assert set(declared) == {"unimllm.lmms_eval_model:manifests"}
