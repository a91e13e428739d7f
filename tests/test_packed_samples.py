"""Rows of conversations: targets, losses as if alone, the same from pixels and codes, faults told and survived."""

import errno
import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from llava_files import NUM_SAMPLES, llava_rows, write_llava
from transformers import AutoProcessor

import unimllm.auto  # noqa: F401
from semhitok import encode
from semhitok.fingerprint import code_layout
from unimllm import UniMLLMForConditionalGeneration
from unimllm.conversation import text_message
from unimllm.data.json_samples import JsonSamples
from unimllm.data.open_data import DataOptions, open_data, open_validation
from unimllm.data.packed_samples import PackedSamples
from unimllm.data.picture_ids import OnlinePixels, StoredCodes
from unimllm.data.sample_index import open_samples
from unimllm.data.sample_tokens import SampleTokenizer
from unimllm.data.samples import BadSample
from unimllm.data.shown_samples import decoded, shown_samples
from unimllm.data.survey import report, survey_samples
from unimllm.errors import UserError
from unimllm.training.batches import open_batches
from unimllm.training.config import TrainConfig
from unimllm.training.sft import SftTask
from unimllm.vocabulary import IGNORE

LENGTH = 80


@pytest.fixture(scope="module")
def processor(tiny_checkpoint):
    return AutoProcessor.from_pretrained(tiny_checkpoint)


@pytest.fixture(scope="module")
def task(tiny_checkpoint) -> SftTask:
    return SftTask(UniMLLMForConditionalGeneration.from_pretrained(tiny_checkpoint), {"text": 2.0}).eval()


@pytest.fixture(scope="module")
def llava(tmp_path_factory) -> Path:
    return write_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def codes(llava, tiny_checkpoint, task) -> StoredCodes:
    folder = llava.parent / "codes"
    encode.main(
        [str(llava.parent / "images"), "--out", str(folder), "--model", str(tiny_checkpoint), "--device", "cpu"]
    )
    layout = code_layout(task.model.image_tokenizer, pad_to_square=False)
    return StoredCodes(folder, layout, task.model.config.image_offset)


def tokenizer(processor, max_length: int = LENGTH) -> SampleTokenizer:
    return SampleTokenizer(processor.conversation, max_length)


def source(llava: Path, processor, pictures=None, text_drop=0.1, cache=None, **options) -> PackedSamples:
    options = DataOptions([str(llava)], image_root=llava.parent / "images", **options)
    pictures = pictures or OnlinePixels(processor.image_processor)
    cache = cache or llava.parent / "index"
    return open_data(options, tokenizer(processor), pictures, LENGTH, text_drop, 0, 8, cache)[0]


def place(task: SftTask, batch: dict) -> dict[str, torch.Tensor]:
    """A batch with ids in place of placeholders."""
    return task.place_images(**{name: value for name, value in batch.items() if name != "skipped"})


# ---- what is in the rows --------------------------------------------------------------------------------------------


def test_targets_are_what_the_assistant_says(llava, processor, task):
    made = source(llava, processor, text_drop=0.0)
    batch = place(task, made(range(7)))
    decode, offset = processor.tokenizer.decode, task.model.config.image_offset
    said = []
    for ids, labels, positions in zip(
        *(batch[n].tolist() for n in ("input_ids", "labels", "position_ids")), strict=True
    ):
        starts = [i for i, position in enumerate(positions) if position == 0] + [len(ids)]
        for start, end in itertools.pairwise(starts):
            text = decode([i if i < offset else processor.conversation.ids["image"] for i in ids[start:end]])
            targets = [i for i in labels[start:end] if i != IGNORE]
            said.append((text, decode([i if i < offset else processor.conversation.ids["image"] for i in targets])))
    picture = "<|image_start|><image><image><image><image><|image_end|>"
    said = [pair for pair in said if "<|pad|>" not in pair[0]]
    assert len(said) >= NUM_SAMPLES
    for text, target in said:
        answers = text.split("<|assistant|>")[1:]
        assert target == "".join(answer.split("<|user|>")[0] for answer in answers)
    assert (f"<|user|>{picture}What is in the picture?<|assistant|>a red apple<|end|>", "a red apple<|end|>") in said
    assert (f"<|user|>a photo of 6 dogs<|assistant|>{picture}<|end|>", f"{picture}<|end|>") in said
    assert any(text.startswith(f"<|user|>{picture}Is there") and target == "yes<|end|>green and blue<|end|>"
               for text, target in said)  # fmt: skip


def test_prompts_are_dropped_now_and_then(llava, processor):
    made = source(llava, processor, text_drop=1.0)
    assert len(made.words(0, 2, 0)[0]) < len(source(llava, processor, text_drop=0.0).words(0, 2, 0)[0])
    assert made.words(0, 1, 0)[0] == source(llava, processor, text_drop=0.0).words(0, 1, 0)[0]  # not a drawing


def test_one_of_several_captions_is_drawn(tmp_path, llava, processor):
    path = tmp_path / "captions.jsonl"
    path.write_text(
        json.dumps({"image": str(llava.parent / "images/a/0.png"), "captions": ["a dog", "a photo of a dog"]})
    )
    made = source(path, processor, text_drop=0.0, cache=tmp_path / "index")
    lengths = {len(made.words(0, 0, epoch)[0]) for epoch in range(20)}
    assert len(lengths) == 2 and made.plan.mixture.surveys[0].lengths.tolist() == [max(lengths)]


def test_captions_that_are_too_long_leave_the_others(tmp_path, llava, processor):
    path = tmp_path / "captions.jsonl"
    captions = ["a dog " * 99, "a dog", "a photo of a dog"]
    path.write_text(json.dumps({"image": str(llava.parent / "images/a/0.png"), "captions": captions}))
    made = source(path, processor, text_drop=0.0, cache=tmp_path / "index")
    lengths = {len(made.words(0, 0, epoch)[0]) for epoch in range(20)}
    (found,) = made.plan.mixture.surveys
    assert len(lengths) == 2 and found.lengths.tolist() == [max(lengths)]
    ((_, reason, message),) = found.findings
    assert reason == "fewer captions" and message.startswith("1 of 3 are left out; the first: ")


def test_packed_samples_have_the_loss_that_each_has_alone(llava, processor, task):
    made = source(llava, processor)
    model = SftTask(task.model.double(), task.loss_weights).eval()
    try:
        packed = place(task, made(range(6)))
        with torch.no_grad():
            together = model(num_items=torch.tensor(1.0), **packed)["loss"]
            alone, count = torch.zeros(()), 0
            for number in range(6):
                for member in made.plan.row(number):
                    tokenized, pictures = made.words(*member)
                    ids = torch.tensor([tokenized.input_ids])
                    labels = torch.where(torch.tensor([tokenized.is_target]), ids, IGNORE)
                    pixels = (
                        {"pixel_values": torch.stack([made.pictures.load(p) for p in pictures])} if pictures else {}
                    )
                    sample = model(num_items=torch.tensor(1.0), input_ids=ids, labels=labels, **pixels)
                    alone, count = alone + sample["loss"], count + 1
        assert count > 12
        torch.testing.assert_close(together, alone.to(together), rtol=1e-6, atol=1e-5)
    finally:
        task.model.float()


def test_pixels_and_codes_give_identical_batches(llava, processor, task, codes):
    online, stored = source(llava, processor), source(llava, processor, codes)
    for start in range(0, 24, 4):
        from_pixels, from_codes = online(range(start, start + 4)), stored(range(start, start + 4))
        assert "pixel_values" not in from_codes and from_pixels.pop("skipped") == from_codes.pop("skipped") == []
        placed = place(task, from_pixels)
        assert placed.keys() == from_codes.keys()
        assert all(torch.equal(placed[name], from_codes[name]) for name in placed)
        assert (from_codes["labels"] >= task.model.config.image_offset).any()
    with torch.autocast("cpu", torch.bfloat16):  # the step's precision does not reach the codes
        again = place(task, online(range(20, 24)))
    assert torch.equal(again["input_ids"], from_codes["input_ids"])


def test_codes_without_a_key_are_told(llava, processor, codes):
    with pytest.raises(
        UserError,
        match=r"no sample of .* has its pictures; the first: .*data.json:2: no codes: images/a/0.png; encode them by ",
    ):
        rows = [row | {"image": f"images/{row['image']}"} for row in llava_rows() if "image" in row]
        other = llava.parent / "other" / "data.json"
        other.parent.mkdir()
        other.write_text(json.dumps(rows, indent=0))
        source(other, processor, codes)


def test_validation_rows_hold_every_sample_once_and_as_many_as_are_wanted(llava, processor, codes):
    options = DataOptions([], image_root=llava.parent / "images")
    cache = llava.parent / "index"
    made, num_rows = open_validation(str(llava), options, tokenizer(processor), codes, LENGTH, 1000, cache)
    members = [member for row in range(num_rows) for member in made.plan.row(row)]
    assert sorted(members) == [(0, number, 0) for number in range(NUM_SAMPLES)]
    fewer, few = open_validation(str(llava), options, tokenizer(processor), codes, LENGTH, 3, cache)
    assert few == 3 < num_rows
    assert torch.equal(fewer(range(3))["input_ids"], made(range(3))["input_ids"])


@pytest.mark.parametrize("num_rows", [1, 8])
def test_targets_of_text_and_pictures_are_counted_apart(num_rows, llava, processor, task, codes):
    from_pixels = source(llava, processor)(range(num_rows))
    batch = place(task, from_pixels)
    targets, offset = batch["labels"][:, 1:], task.model.config.image_offset
    outputs = {
        name: torch.tensor(value) for name, value in {"loss": 9, "text": 2.0, "semantic": 1.0, "pixel": 0.5}.items()
    }
    expected = {"text": ((targets >= 0) & (targets < offset)).sum(), "image": (targets >= offset).sum()}
    for given in (from_pixels, batch):  # placeholders stand for their ids
        sums = task.target_sums(given, outputs)
        assert {part: int(count) for part, (_, count) in sums.items()} == expected
        assert sums["text"][0] == 2.0 * expected["text"] and sums["image"][0] == 1.5 * expected["image"]


def test_parts_of_the_loss_add_up_over_micro_batches_without_one_of_them(llava, processor, task, codes):
    batch = source(llava, processor, codes)(range(4))
    rows = [{name: batch[name][i : i + 1] for name in ("input_ids", "labels", "position_ids")} for i in range(4)]
    rows.append({name: column.clone() for name, column in rows[0].items()})
    rows[4]["labels"][rows[4]["labels"] >= task.model.config.image_offset] = IGNORE
    counted = [task.count_targets(row) for row in rows]
    assert counted[4]["image"] == 0 < counted[4]["text"] == counted[4]["all"]
    shares = {name: torch.tensor(sum(c[name] for c in counted) / 5) for name in counted[0]}
    with torch.no_grad():
        logged = [task(num_items=shares, **row) for row in rows]
        alone = [task(**row) for row in rows]
    for name in ("text", "semantic", "pixel", "loss"):
        kind = {"text": "text", "loss": "all"}.get(name, "image")
        expected = sum(part[name] * c[kind] for part, c in zip(alone, counted, strict=True)) / (5 * shares[kind])
        torch.testing.assert_close(sum(part[name] for part in logged) / 5, expected, check_dtype=False)


def test_rows_tell_where_their_samples_lie_and_how_far_the_data_has_been_read(llava, processor, codes):
    made = source(llava, processor, codes)
    (first, *_), (second, *_) = made.plan.row(2), made.plan.row(3)
    told = made.describe(range(2, 4)).split("; ")
    assert told[0].startswith(f"row 2: {made.indices[0].key(first[1])}") and f"{llava}:" in told[0]
    assert told[1].startswith(f"row 3: {made.indices[0].key(second[1])}") and len(told) == 2
    assert made.epochs_at(made.plan.ends[0]) == 1
    assert SftTask.count_samples(made(range(4))) == sum(len(made.plan.row(number)) for number in range(4))


# ---- who asks does not matter ---------------------------------------------------------------------------------------


def test_ranks_and_workers_share_the_rows_without_overlap_or_loss(llava, processor, codes):
    whole = source(llava, processor, codes)(range(24))
    for world_size, num_workers in ((2, 0), (3, 2)):
        for first_step in (0, 1):
            config = TrainConfig(batch_size=12, num_workers=num_workers)
            made = source(llava, processor, codes)
            ranks = [open_batches(made, config, rank, world_size, 12 * first_step) for rank in range(world_size)]
            for step in range(first_step, 2):
                parts = [next(rank) for rank in ranks]
                for name in ("input_ids", "labels", "position_ids"):
                    expected = whole[name][12 * step : 12 * step + 12]
                    assert torch.equal(torch.cat([part[name] for part in parts]), expected)


# ---- faults ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def faulty(llava, tmp_path) -> Path:
    """The data set as JSON lines with one fault of each kind among them."""
    shutil.copytree(llava.parent / "images", tmp_path / "images")
    (tmp_path / "images/a/4.png").unlink()
    (tmp_path / "images/b/5.png").write_bytes(b"no picture")
    lines = [json.dumps(row) for row in llava_rows()]
    long = {"conversations": [{"from": "human", "value": "dog " * 100}, {"from": "gpt", "value": "yes"}]}
    turns = [{"from": who, "value": "a photo of two dogs"} for who in ("human", "gpt") * 9]
    marked = {"conversations": [{"from": "human", "value": "a <|end|>"}, {"from": "gpt", "value": "b"}]}
    lines[8] = lines[8][:30]
    lines[9] = lines[7]
    lines[12:15] = [json.dumps(long), json.dumps({"id": "cut", "conversations": turns}), json.dumps(marked)]
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(lines))
    return path


def survey(path: Path, processor, **options):
    index = open_samples(str(path), None, path.parent / "images")
    pictures = OnlinePixels(processor.image_processor)
    return index, survey_samples(index, tokenizer(processor), pictures.check, pictures.name, **options)


def test_faults_are_counted_and_named_by_line_before_training(faulty, processor):
    index, found = survey(faulty, processor)
    told = report(index, found)
    kinds = [(number + 1, kind) for number, kind, _ in found.findings]
    assert kinds == [
        (5, "missing picture"), (9, "broken JSON"), (10, "duplicate id"), (13, "too long"), (14, "cut short"),
        (15, "a mark of the model"),
    ]  # fmt: skip
    assert found.counts() == {"understanding": 9, "drawing": 4, "text": 3}
    assert "20 samples in 1 JSON file: 9 understanding, 4 drawing, 3 text" in told
    assert f"  missing picture: 1 left out\n    {faulty}:5: {faulty.parent}/images/a/4.png" in told
    assert f"  duplicate id: 1 used all the same\n    {faulty}:10: as in {faulty}:8; both are used" in told
    assert "turns fit into 80 ids" in told and f"{faulty}:15: a text holds <|end|>" in told


def test_the_task_of_a_sample_is_that_of_what_fits_of_it(llava, processor, tmp_path):
    turns = [{"from": who, "value": "a photo of two dogs"} for who in ("human", "gpt") * 9]
    turns += [{"from": "human", "value": "a dog"}, {"from": "gpt", "value": "<image>"}]
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({"image": str(llava.parent / "images/a/0.png"), "conversations": turns}))
    _, found = survey(path, processor)
    assert found.counts() == {"understanding": 0, "drawing": 0, "text": 1}


def test_strict_stops_at_the_first_fault(faulty, processor):
    with pytest.raises(UserError, match=r"data.jsonl:5: missing picture: .*/images/a/4.png \(--strict\)"):
        survey(faulty, processor, strict=True)
    empty = faulty.parent / "shards"
    empty.mkdir()
    shutil.copy(faulty, empty)
    (empty / "empty.jsonl").write_bytes(b"")
    with pytest.raises(UserError, match=r"empty.jsonl: damaged JSON file: the file is empty; nothing of it is used"):
        survey(empty, processor, strict=True)


def test_places_without_samples_leave_the_others_their_run(llava, processor, tmp_path, capsys):
    """As `--data tars/*.tar` names them: one of 0 bytes, and one whose samples are all bad."""
    (tmp_path / "empty.tar").write_bytes(b"")
    (tmp_path / "bad.jsonl").write_text('{"conversations": []}\n{"conversations": 5}\n')
    places = [str(tmp_path / "empty.tar") + ":3", str(llava), str(tmp_path / "bad.jsonl")]

    def open_places(*places: str, **more):
        options = DataOptions([*places], image_root=llava.parent / "images", **more)
        pictures = OnlinePixels(processor.image_processor)
        return open_data(options, tokenizer(processor), pictures, LENGTH, 0.1, 0, 8, tmp_path / "index")

    made, about = open_places(*places)
    told = capsys.readouterr().out
    first = f"no sample of {tmp_path}/bad.jsonl can be used; the first: {tmp_path}/bad.jsonl:1: no conver"
    assert f"warning: {first}" in told and f"; {tmp_path}/bad.jsonl is left out (--strict: an error)\n" in told
    assert f"warning: no samples in {tmp_path}/empty.tar; {tmp_path}/empty.tar: damaged tar file: " in told
    assert f"; {tmp_path}/empty.tar is left out, so that its weight of 3 does nothing (--strict: an error)" in told
    assert [source["place"] for source in about["sources"]] == [str(llava)]
    alone = open_places(str(llava))[0]
    assert torch.equal(made(range(4))["input_ids"], alone(range(4))["input_ids"])
    with pytest.raises(UserError, match=r"^no samples in .*/empty.tar; .* \(--strict\)$"):
        open_places(*places, strict=True)
    with pytest.raises(UserError, match="^no samples in .*; and so it is at the other 1 places$"):
        open_places(places[0], places[2])


def test_a_wrong_image_root_has_a_remedy_where_all_samples_have_pictures(llava, processor, tmp_path):
    (tmp_path / "data.jsonl").write_text("\n".join(json.dumps(row) for row in llava_rows() if "image" in row))
    with pytest.raises(UserError, match="no sample of .* has its pictures; the first: .*: missing picture: .*--image"):
        survey(tmp_path / "data.jsonl", processor)


def test_a_survey_is_kept_and_missing_pictures_are_looked_for_again(faulty, processor):
    cache = faulty.parent / "index"
    first = survey(faulty, processor, cache=cache)[1]
    shutil.copy(faulty.parent / "images/a/2.png", faulty.parent / "images/a/4.png")
    second = survey(faulty, processor, cache=cache)[1]
    assert second.findings == first.findings[1:] and second.lengths[4] > 0 == first.lengths[4]
    assert np.array_equal(np.delete(second.lengths, 4), np.delete(first.lengths, 4))
    with pytest.raises(UserError, match="broken JSON"):
        survey(faulty, processor, cache=cache, strict=True)


def test_a_survey_that_cannot_be_kept_is_made_again(llava, processor, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for _ in range(2):
        assert not survey(llava, processor, cache=tmp_path / "file" / "index")[1].findings
    assert capsys.readouterr().out.count("cannot be kept in") == 1


def test_samples_that_the_disk_did_not_give_are_looked_at_again(llava, processor, tmp_path, monkeypatch):
    def read(shard, i: int):
        if i in (3, 7):
            raise OSError(errno.EIO, "Input/output error")
        return whole(shard, i)

    whole = JsonSamples.read
    monkeypatch.setattr(JsonSamples, "read", read)
    first = survey(llava, processor, cache=tmp_path)[1]
    assert [finding[:2] for finding in first.findings] == [(3, "not readable"), (7, "not readable")]
    monkeypatch.setattr(JsonSamples, "read", whole)
    again = survey(llava, processor, cache=tmp_path)[1]
    assert not again.findings and (again.lengths > 0).all()


@pytest.mark.parametrize("fault", ["duplicate id", "cut short", "no answer at the end"])
def test_strict_stops_at_samples_that_are_used_all_the_same(fault, llava, processor, tmp_path):
    rows = llava_rows()
    turns = [{"from": who, "value": "a photo of two dogs"} for who in ("human", "gpt") * 9]
    turns = turns if fault == "cut short" else turns[:3]
    rows.append(rows[-1] if fault == "duplicate id" else {"conversations": turns})
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    shutil.copytree(llava.parent / "images", tmp_path / "images")
    index, found = survey(tmp_path / "data.jsonl", processor)
    assert [reason for _, reason, _ in found.findings] == [fault] and (found.lengths > 0).all()
    assert f"  {fault}: 1 used all the same" in report(index, found)
    with pytest.raises(UserError, match=rf"data.jsonl:21: {fault}: .* \(--strict\)"):
        survey(tmp_path / "data.jsonl", processor, strict=True)


def test_ids_of_one_place_in_another_are_counted(llava, processor, tmp_path, capsys):
    rows = [{**llava_rows()[7], "id": name} for name in ("s0", "s1", "s1", "new")]
    for name, own in (("b", rows), ("c", [*rows, {**rows[0], "id": ""}, {**rows[0], "id": "newer"}])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, own)))
    places = [str(llava), f"{tmp_path}/b.jsonl", f"{tmp_path}/c.jsonl"]
    options = DataOptions(places, image_root=llava.parent / "images")
    pictures = OnlinePixels(processor.image_processor)
    open_data(options, tokenizer(processor), pictures, LENGTH, 0.1, 0, 8, tmp_path / "index")
    told = capsys.readouterr().out
    assert "  ids that places before have, too: 2 of b.jsonl, 3 of c.jsonl; all are used\n" in told
    options = DataOptions(places[:1] * 5, image_root=llava.parent / "images")
    open_data(options, tokenizer(processor), pictures, LENGTH, 0.1, 0, 8, tmp_path / "index")
    named = ", ".join(["20 of data.json"] * 3)
    assert f"  ids that places before have, too: {named} and those of 1 more; all are used\n" in capsys.readouterr().out


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_lost_disk_ends_the_run(llava, processor, tmp_path, monkeypatch, num_workers):
    monkeypatch.setattr("unimllm.data.packed_samples.MAX_LOST", 20)
    shutil.copytree(llava.parent, tmp_path / "data", ignore=shutil.ignore_patterns("codes"))
    made = source(tmp_path / "data" / llava.name, processor, cache=tmp_path / "index")
    shutil.rmtree(tmp_path / "data" / "images")
    batches = open_batches(made, TrainConfig(batch_size=4, num_workers=num_workers), 0, 1, 0)
    with pytest.raises(UserError, match="20 samples with pictures in a row cannot be had, .*missing picture.*disk"):
        for _ in range(40):
            next(batches)


def test_pictures_that_lie_elsewhere_end_the_run(llava, processor, tmp_path):
    def look(root: Path):
        index = open_samples(str(llava), None, root)
        pictures = OnlinePixels(processor.image_processor)
        return survey_samples(index, tokenizer(processor), pictures.check, pictures.name, cache=tmp_path)

    assert not look(llava.parent / "images").findings
    with pytest.raises(UserError, match="no sample of .* has its pictures; the first: .*/elsewhere/.*--image-root"):
        look(tmp_path / "elsewhere")  # though another root was looked through before


def test_samples_on_one_line_are_told_by_number(tmp_path):
    path = tmp_path / "data.json"
    path.write_text(json.dumps(llava_rows()[:3]))
    assert open_samples(str(path), None, None).key(1) == f"{path}:1, sample 2"


def test_workers_survey_alike(faulty, processor, monkeypatch):
    monkeypatch.setattr("unimllm.data.survey.CHUNK", 3)
    one, two = survey(faulty, processor)[1], survey(faulty, processor, num_workers=2)[1]
    assert one.findings == two.findings and np.array_equal(one.lengths, two.lengths)
    assert np.array_equal(one.ids, two.ids) and np.array_equal(one.tasks, two.tasks)


def test_the_first_sample_of_each_task_is_shown(llava, processor):
    index, found = survey(llava, processor)
    _, *lines = shown_samples(index, found, tokenizer(processor))
    told = {line.split(",")[0].strip(): line.partition(": ")[2] for line in lines}
    assert told["understanding"] == "<|user|><image>What is in the picture?<|assistant|>[[a red apple<|end|>]]"
    assert told["drawing"] == "<|user|>a photo of 2 dogs<|assistant|>[[<image><|end|>]]"
    assert told["text"].endswith("[[red<|end|>]]") and f"text, {llava}:" in lines[2]


def test_a_shown_sample_is_one_line(processor):
    texts = ("a dog\n" * 30, "yes\x1b[2J", "red " * 50, "a dog " * 30)
    messages = [text_message(role, text) for role, text in zip(("user", "assistant") * 2, texts, strict=True)]
    told = decoded(processor.conversation(messages), processor.conversation)
    assert len(told) <= 200 and told.isprintable() and " ... " in told and "[[yes\\x1b[2J<|end|>]]" in told
    assert told.startswith("<|user|>a dog\\na dog\\n") and told.endswith(" a dog <|end|>]]")


def test_a_long_first_look_tells_how_far_it_is(llava, processor, monkeypatch, capsys):
    monkeypatch.setattr("unimllm.data.survey.CHUNK", 5)
    survey(llava, processor)
    assert not capsys.readouterr().out
    monkeypatch.setattr("unimllm.data.survey.TELL_EVERY", 0)
    survey(llava, processor)
    assert capsys.readouterr().out.splitlines()[1] == f"looking at {llava}: 50% of 20 samples"


def test_an_unreadable_picture_leaves_its_place_empty(faulty, processor):
    made = source(faulty, processor, cache=faulty.parent / "index")
    broken = {i for i, row in enumerate(llava_rows()) if row.get("image") == "b/5.png" and i not in (8, 9, 12, 13, 14)}
    members = [member for row in range(6) for member in made.plan.row(row)]
    batch = made(range(6))
    faults = batch["skipped"]
    assert len(faults) == sum(number in broken for _, number, _ in members) > 0
    assert {fault.reason for fault in faults} == {"no picture"}
    assert str(faults[0]).startswith(f"{faulty}:") and faults[0].instead == "its place stays empty"
    samples = int((batch["position_ids"] == 0).sum())  # of whole samples, and of the padding of rows that are not full
    assert len(members) - len(faults) <= samples <= len(members) - len(faults) + 6
    assert len(batch["pixel_values"]) * 4 == int((batch["input_ids"] == processor.conversation.ids["image"]).sum())
    made.strict = True
    with pytest.raises(UserError, match=r"b/5.png is no picture that can be read.*\(--strict\)"):
        made(range(6))


def test_long_conversations_lose_turns_at_their_end(processor):
    def messages(*texts: str) -> list[dict]:
        roles = itertools.cycle(("user", "assistant"))
        return [
            {"role": role, "content": [{"type": "text", "text": text}]}
            for role, text in zip(roles, texts, strict=False)
        ]

    whole = messages("a dog", "yes", "a dog", "no", "a dog", "red")
    lengths = [len(processor.conversation(whole[:end])) for end in (2, 4, 6)]
    for limit, kept in ((lengths[2], 6), (lengths[2] - 1, 4), (lengths[1], 4), (lengths[1] - 1, 2), (lengths[0], 2)):
        tokenized, left = SampleTokenizer(processor.conversation, limit)(whole)
        assert left == whole[:kept] and tokenized == processor.conversation(left)
    with pytest.raises(BadSample, match=r"fit \(--max_length\)"):
        SampleTokenizer(processor.conversation, lengths[0] - 1, 99)(whole)
    with pytest.raises(BadSample, match="fit into the model's context"):
        SampleTokenizer(processor.conversation, 99, lengths[0] - 1)(whole)


def test_a_system_turn_needs_a_template_that_knows_it(tiny_checkpoint):
    system = [{"role": "system", "content": [{"type": "text", "text": "be kind"}]}]
    turns = [{"role": role, "content": [{"type": "text", "text": "a"}]} for role in ("user", "assistant")]
    conversation = AutoProcessor.from_pretrained(tiny_checkpoint).conversation
    with pytest.raises(BadSample, match="no place for it"):
        SampleTokenizer(conversation, LENGTH)(system + turns)
    conversation.tokenizer.chat_template = (
        "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    tokenized, kept = SampleTokenizer(conversation, LENGTH)(system + turns)
    assert kept == system + turns and sum(tokenized.is_target) == len(conversation.tokenizer("a")["input_ids"])
