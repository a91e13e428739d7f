"""One training sample, whatever file it lay in: a conversation in the one message format, its pictures not yet read.

    layout     a row of a file has                                            becomes
    llava      conversations: [{from, value}], or messages: [{role, content}]  that conversation
               and image or images; `<image>` in a text stands for the next
               (or the parts of a turn name their pictures themselves)
               (CHEERS's marks around it, `<im_start><image><im_end>`, and its
               `<image_gen>` for a picture to draw are read alike)
               messages without `<image>`, or texts: [{user, assistant}] as    that conversation, the pictures first
               FineVision and the Cauldron have it; and image or images
    captions   caption, captions, else text, else prompt; and one picture      the picture, drawn for the text

Messages are as in `unimllm.conversation`; the picture of an image part lies under its key "image".
"""

import ast
import base64
import contextlib
import hashlib
import json
import os
import posixpath
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from unimllm.images import UnreadablePicture
from unimllm.vocabulary import CHEERS_TOKENS, IMAGE_TOKENS

TASKS = ("understanding", "drawing", "text")
LAYOUTS = ("llava", "captions")
IMAGE = IMAGE_TOKENS["image"]
TO_DRAW = CHEERS_TOKENS["image_gen"]  # in an answer of CHEERS's own data, in the place of IMAGE
AROUND = CHEERS_TOKENS["image_start"], CHEERS_TOKENS["image_end"]  # both there, which ours has not in its texts
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
PAIRS_KEY = "texts"
CONVERSATION_KEYS = ("conversations", "messages", PAIRS_KEY)
CAPTION_KEYS = ("caption", "captions", "text", "prompt")
CAPTION_CHOICES = (("caption", "captions"), ("text",), ("prompt",))
"""Of several only the first is drawn for: an instruction or a web page's text may stand beside a caption."""
ANSWER_KEYS = ("question", "question_id", "answer", "answers", "completion", "response", "chosen", "rejected")
"""What makes a question or an instruction of a text that would else be a caption."""
IMAGE_KEYS = ("image", "images", "image_path", "image_file", "img", "img_path")
PICTURE_KEYS = {"llava": IMAGE_KEYS, "captions": (*IMAGE_KEYS, "path", "file_name", "filename", "file")}
UNREAD_KEYS = ("video", "videos", "audio", "audios", "image_url", "image_urls", "image_id")
UNREAD_MARKS = ("<video>", "<audio>")
SYSTEM_KEYS = ("system", "system_prompt")

PART_KEYS = ("image", "path", "image_url", "url")
PART_KINDS = {"text": "text", "input_text": "text", "output_text": "text"} | {
    "image": "image", "image_url": "image", "input_image": "image"
}  # fmt: skip
NO_VALUE = (ValueError, TypeError, SyntaxError, RecursionError, MemoryError)  # of json and ast, for any text
BASE64_STARTS = ("/9j/", "iVBORw0KGgo", "UklGR", "R0lGOD")  # of JPEG, PNG, WebP and GIF
SHORTEST_BASE64, LONGEST_NAME = 60, 1024  # characters of a picture in base64, and of a path


class BadSample(ValueError):
    """A sample that cannot be trained on.

    Attributes:
        reason: two or three words to count by; the message says what is wrong with this one.
    """

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class PictureOnDisk:
    """A picture file.

    Attributes:
        key: its path below the image root, elsewhere as the data names it; `semhitok encode` of that root gives it the
            same key.
    """

    key: str
    path: Path

    def is_there(self) -> bool:
        try:
            return self.path.is_file()
        except OSError:  # a name that no disk takes
            return False

    def read(self) -> bytes:
        try:
            return self.path.read_bytes()
        except (OSError, ValueError) as error:  # ValueError: a name that no disk takes
            reason = "not readable" if isinstance(error, OSError) else "missing picture"
            reason = "missing picture" if isinstance(error, FileNotFoundError) else reason
            raise UnreadablePicture(reason, f"{self.path}: {getattr(error, 'strerror', None) or error}") from error


@dataclass(frozen=True)
class StoredPicture:
    """A picture inside a tar, a parquet file or a dataset; `load` fetches its bytes."""

    key: str
    load: Callable[[], bytes]

    def is_there(self) -> bool:
        return True

    def read(self) -> bytes:
        return self.load()


Picture = PictureOnDisk | StoredPicture


@dataclass(frozen=True)
class Sample:
    """A conversation to learn from.

    Attributes:
        variants: conversations of which one is drawn each time (several captions of one picture); mostly just one.
        id: as the data names it, "" where it does not.
        is_cut: whether a question without an answer was left out at its end.
    """

    variants: list[list[dict]]
    id: str = ""
    is_cut: bool = False

    @property
    def task(self) -> str:
        """See `task_of`."""
        return task_of(self.variants[0])


def place_of(path: Path) -> str:
    """What the keys of the pictures in a file begin with: its name and those of the two folders that hold it."""
    return "/".join(part for part in path.absolute().parts[-3:] if part != path.absolute().anchor)


def task_of(messages: list[dict]) -> str:
    """One of TASKS: a picture in an answer is drawing, else one in a question is understanding."""
    drawn = [message["role"] == "assistant" for message in messages for _ in pictures_of([message])]
    return "drawing" if any(drawn) else "understanding" if drawn else "text"


def pictures_of(messages: list[dict]) -> list[Picture]:
    """The pictures of a conversation in reading order."""
    return [part["image"] for message in messages for part in message["content"] if part["type"] == "image"]


def picture_named(name: str, root: Path) -> Picture:
    """The picture that data names by a path, relative to `root` or absolute, or holds in base64, as a data URL or bare.

    Raises:
        BadSample: none of these.
    """
    if name.startswith("data:") or (len(name) > SHORTEST_BASE64 and name.startswith(BASE64_STARTS) and "." not in name):
        return StoredPicture(f"data-url-{hashlib.sha256(name.encode()).hexdigest()[:16]}", partial(_read_base64, name))
    if len(name) > LONGEST_NAME:
        raise BadSample("no path", f"a name of {len(name):,} characters, {name[:60]}..., which is no picture in base64")
    if name.startswith(("http://", "https://")):
        raise BadSample("a URL", f"{name} is not fetched: download the pictures first, for instance with img2dataset")
    name = name.removeprefix("file://").replace("\\", "/")  # of Windows
    key = posixpath.normpath(name)
    if posixpath.isabs(key):
        key = key.removeprefix(os.path.join(os.path.abspath(root), ""))
    return PictureOnDisk(key, root / name)


def _read_base64(text: str) -> bytes:
    """What base64 holds, alone or in a data URL."""
    try:
        return base64.b64decode(text.partition(";base64,")[2] if text.startswith("data:") else text, validate=True)
    except ValueError as error:
        what = "its data URL" if text.startswith("data:") else f"{text[:60]}..."
        raise UnreadablePicture("damaged", f"{what} is no base64: {error}") from error


def split_names(row: dict, names: list[str], layout: str) -> list[str]:
    """The names of a row's pictures, where CHEERS's data joins those of several by commas or semicolons into one text.

    It is split where the turns have as many places for pictures, more than one, as it has names.
    """
    if layout != "llava" or len(names) != 1 or names[0].startswith("data:") or not set(",;") & set(names[0]):
        return names
    parts = [part.strip() for part in re.split("[,;]", names[0])]
    places = sum(text.count(IMAGE) for _, text in read_turns(row))
    return parts if places == len(parts) and all(parts) else names


def layout_of(names) -> str:
    """The layout of a row with these keys.

    Raises:
        BadSample: none, or what looks like captions has answers beside them.
    """
    if any(key in names for key in CONVERSATION_KEYS if key != PAIRS_KEY):
        return "llava"
    caption = next((key for key in CAPTION_KEYS if key in names), None)
    if caption:
        answer = next((key for key in ANSWER_KEYS if key in names), None)
        if answer:
            raise BadSample(
                "an answer beside a caption",
                f"it holds {caption!r} and {answer!r}: write it as a conversation, or say --format captions",
            )
        return "captions"
    if PAIRS_KEY in names:
        return "llava"
    wanted = ", ".join(CONVERSATION_KEYS + CAPTION_KEYS)
    raise BadSample("unknown layout", f"it holds {', '.join(map(str, names)) or 'nothing'}, none of {wanted}")


def make_sample(row: dict, pictures: list[Picture], layout: str) -> Sample:
    """A sample from a row of a file and the pictures that belong to it; BadSample if it is none."""
    if not pictures:
        refuse_unread(row)
    number = row.get("id")
    name = "" if number is None else str(number)
    if layout == "llava":
        messages, is_cut = conversation(row, pictures)
        return Sample([messages], name, is_cut)
    return Sample(drawings(row, pictures), name)


def refuse_unread(row: dict) -> None:
    """BadSample where a row without pictures names one, or a video or sound, in a way that is not read."""
    unread = next((key for key in UNREAD_KEYS if row.get(key)), None)
    if unread:
        wanted = ", ".join(PICTURE_KEYS["llava"])
        raise BadSample("an unread picture or video", f"{unread!r} is not read; pictures on the disk go under {wanted}")


# ---- conversations --------------------------------------------------------------------------------------------------


def conversation(row: dict, pictures: list[Picture]) -> tuple[list[dict], bool]:
    """The conversation of a row in LLaVA's or OpenAI's words; whether a question at its end is left out of it."""
    if row.get("label") is False:  # of KTO: not to be preferred
        raise BadSample("not to be learnt", "its label is false")
    turns, unanswered = split_unanswered(read_turns(row))
    turns = check_turns(turns)
    if turns_key(row) != "conversations" and not any(IMAGE in text for _, text in turns + unanswered):
        first = next(number for number, (role, _) in enumerate(turns) if role == "user")
        turns[first] = "user", IMAGE * len(pictures) + turns[first][1]
    count = sum(text.count(IMAGE) for _, text in turns + unanswered)
    if count > len(pictures):
        raise BadSample("<image> without an image", f"{count} times {IMAGE} but {len(pictures)} pictures")
    if count < len(pictures):
        told = f"{len(pictures)} pictures but {count} times {IMAGE}; put it where they belong"
        raise BadSample("an image without <image>", told)
    queue = iter(pictures)
    return [{"role": role, "content": split_text(role, text, queue)} for role, text in turns], bool(unanswered)


def turns_key(row: dict) -> str:
    """Under which key of a row its turns lie; "" if it has none."""
    return next((key for key in CONVERSATION_KEYS if row.get(key)), "")


def read_turns(row: dict) -> list[tuple[str, str]]:
    """(role, text) of each turn, pictures in the text as `<image>`."""
    found = row.get(turns_key(row))
    try:
        found = json.loads(found) if isinstance(found, str) else found
        if isinstance(found, dict):  # datasets' old way with lists of structs: a struct of lists
            found = [dict(zip(found, values, strict=True)) for values in zip(*found.values(), strict=True)]
        if turns_key(row) == PAIRS_KEY:
            if not all(isinstance(pair, dict) for pair in found):
                raise BadSample("no conversation", "its texts are no pairs of user and assistant")
            found = [{"role": role, "content": pair[role]} for pair in found for role in ("user", "assistant")]
        turns = [_read_turn(turn) for turn in found or []]
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        if isinstance(error, BadSample):
            raise
        raise BadSample("no conversation", f"its turns cannot be read: {error}") from error
    if not turns:
        raise BadSample("no conversation", "it has no turns")
    instruction = next((row[key] for key in SYSTEM_KEYS if isinstance(row.get(key), str)), "")
    return [("system", instruction), *turns] if instruction and turns[0][0] != "system" else turns


def _read_turn(turn: dict) -> tuple[str, str]:
    speaker = turn.get("from") or turn.get("role")
    if speaker not in ROLES:
        raise BadSample("unknown speaker", f"{speaker!r} is none of {', '.join(ROLES)}")
    if turn.get("weight") == 0:  # OpenAI's
        raise BadSample("not to be learnt", f"a turn of {speaker} has the weight 0")
    text = turn["value"] if turn.get("value") is not None else turn.get("content")
    if isinstance(text, list):  # OpenAI's parts
        text = "".join(part["text"] if kind_of_part(part) == "text" else IMAGE for part in text)
    if not isinstance(text, str):
        raise BadSample("no text", f"a turn of {speaker} holds {type(text).__name__}, not text")
    unread = next((mark for mark in UNREAD_MARKS if mark in text), None)
    if unread:
        raise BadSample("an unread picture or video", f"a turn of {speaker} holds {unread}, which is not read")
    role = ROLES[speaker]
    text = text.replace(TO_DRAW, IMAGE) if role == "assistant" else text
    return role, text.replace(IMAGE.join(AROUND), IMAGE)


def kind_of_part(part: dict) -> str:
    """Text or image; BadSample for any other part of a turn. Qwen's have no type, but a text or a picture."""
    kind = part.get("type") or ("text" if part.get("text") is not None else "image")
    if kind not in PART_KINDS:
        raise BadSample("an unknown part", f"a part of a turn is of the type {kind!r}; text and images are read")
    return PART_KINDS[kind]


def pictures_in_parts(row: dict) -> list:
    """What OpenAI's parts of a row name as their pictures, in reading order: paths, if it is a good row; in tables also
    {bytes, path}.
    """
    turns = next((row[key] for key in CONVERSATION_KEYS if isinstance(row.get(key), list)), [])
    contents = [turn.get("content") for turn in turns if isinstance(turn, dict)]
    parts = [part for content in contents if isinstance(content, list) for part in content if isinstance(part, dict)]
    parts = [part for part in parts if kind_of_part(part) == "image"]
    found = [next((part[key] for key in PART_KEYS if part.get(key)), None) for part in parts]
    return [name["url"] if isinstance(name, dict) and "url" in name else name for name in found if name is not None]


def split_unanswered(turns: list[tuple[str, str]]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """The turns up to the last answer, and behind it the question that nobody answered, if there is one."""
    is_open = len(turns) > 2 and [role for role, _ in turns[-3:]] == ["user", "assistant", "user"]
    return (turns[:-1], turns[-1:]) if is_open else (turns, [])


def check_turns(turns: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The turns without answers to nothing at their beginning (LLaVA drops them too) and without empty instructions.

    Raises:
        BadSample: speakers do not alternate, or an answer or a question is empty or missing.
    """
    has_system = turns[0][0] == "system"
    system, rest = (turns[:1] if has_system and turns[0][1].strip() else []), turns[has_system:]
    while rest and rest[0][0] == "assistant":
        rest = rest[1:]
    for number, (role, text) in enumerate(rest):
        expected = ("user", "assistant")[number % 2]
        if role != expected:
            message = f"turn {number + 1} is the {role}'s, and so is the one before"
            raise BadSample("two turns in a row", message if role != "system" else "a system turn in the middle")
        if not text.strip():
            raise BadSample("an empty answer" if role == "assistant" else "an empty question", f"turn {number + 1}")
    if len(rest) % 2 or not rest:
        raise BadSample("no answer", "it ends with a question" if rest else "nobody asks anything")
    return system + rest


def split_text(role: str, text: str, pictures) -> list[dict]:
    """The parts of a turn; a question's only picture comes first, wherever it stood (as LLaVA has it)."""
    if role == "user" and text.count(IMAGE) == 1:
        before, after = text.split(IMAGE)
        glued = before[-1:].strip() and after[:1].strip()
        text = IMAGE + f"{before}{' ' if glued else ''}{after}".strip()
    parts: list[dict] = []
    for number, piece in enumerate(text.strip().split(IMAGE)):
        parts += [{"type": "image", "image": next(pictures)}] if number else []
        parts += [{"type": "text", "text": piece}] if piece else []
    return parts


# ---- captions -------------------------------------------------------------------------------------------------------


def drawings(row: dict, pictures: list[Picture]) -> list[list[dict]]:
    """For each caption of a row's picture the conversation that asks for it."""
    if not pictures:
        raise BadSample("no picture", f"nothing under {', '.join(PICTURE_KEYS['captions'])}")
    if len(pictures) > 1:
        raise BadSample("several pictures", f"{len(pictures)} pictures, not 1")
    found = ([text for key in keys if row.get(key) for text in caption_texts(row[key])] for keys in CAPTION_CHOICES)
    texts = next(filter(None, found), None)
    if not texts:
        raise BadSample("an empty caption", f"no text under {', '.join(CAPTION_KEYS)}")
    return [drawing(text, pictures[0]) for text in dict.fromkeys(texts)]


def drawing(text: str, picture: Picture) -> list[dict]:
    """The conversation that asks for a picture and gets it."""
    return [
        {"role": "user", "content": [{"type": "text", "text": text}] if text else []},
        {"role": "assistant", "content": [{"type": "image", "image": picture}]},
    ]


def caption_texts(value) -> list[str]:
    """Captions from one text, a list of them, or BAGEL's JSON object of them, as a text or read already; BadSample for
    an object of a question and its answers.
    """
    if isinstance(value, str) and value.lstrip().startswith(("{", "[")):
        read = ast.literal_eval if value.lstrip().startswith("['") else json.loads  # a list as Python writes it
        with contextlib.suppress(*NO_VALUE):  # a caption may just begin so
            found = read(value)
            value = found if isinstance(found, dict) or any(isinstance(text, str) for text in found) else value
    if isinstance(value, dict) and any(key in value for key in ANSWER_KEYS):
        raise BadSample("an answer beside a caption", f"its caption is an object of {', '.join(map(str, value))}")
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
    return [text.strip() for text in values if isinstance(text, str) and text.strip()]
