"""The vocabulary of the emoji scenes: GenEval's object names with their emoji, GenEval's colours, and word forms.

Names and colours are those of GenEval (github.com/djghosh13/geneval, MIT); the 12 of its 80 names that no emoji fits
(parking meter, bench, fire hydrant, ...) are left out.
"""

import colorsys

OBJECTS: dict[str, str] = {
    # traffic
    "car": "🚗", "bus": "🚌", "bicycle": "🚲", "airplane": "✈", "boat": "⛵", "motorcycle": "🏍", "train": "🚆",
    "truck": "🚚", "traffic light": "🚦", "stop sign": "🛑",
    # living things
    "person": "🧑", "dog": "🐶", "cat": "🐱", "bird": "🐦", "horse": "🐎", "elephant": "🐘", "giraffe": "🦒",
    "sheep": "🐑", "cow": "🐄", "bear": "🐻", "zebra": "🦓",
    # food
    "apple": "🍎", "banana": "🍌", "carrot": "🥕", "pizza": "🍕", "donut": "🍩", "cake": "🎂", "sandwich": "🥪",
    "orange": "🍊", "broccoli": "🥦", "hot dog": "🌭",
    # household
    "chair": "🪑", "potted plant": "🪴", "clock": "🕒", "book": "📕", "umbrella": "☂", "scissors": "✂",
    "bottle": "🍾", "wine glass": "🍷", "cup": "☕", "fork": "🍴", "knife": "🔪", "spoon": "🥄", "bowl": "🥣",
    "couch": "🛋", "bed": "🛏", "toilet": "🚽", "tv": "📺", "laptop": "💻", "computer mouse": "🖱",
    "computer keyboard": "⌨", "cell phone": "📱", "vase": "🏺", "teddy bear": "🧸", "toothbrush": "🪥",
    # carried and played with
    "backpack": "🎒", "handbag": "👜", "tie": "👔", "suitcase": "🧳", "frisbee": "🥏", "skis": "🎿",
    "snowboard": "🏂", "sports ball": "⚽", "kite": "🪁", "baseball bat": "🏏", "skateboard": "🛹",
    "surfboard": "🏄", "tennis racket": "🎾",
}  # fmt: skip
"""GenEval object name -> the emoji that draws it, in a fixed order grouped by theme."""

THEMES: tuple[tuple[str, str], ...] = (
    ("traffic", "car"), ("living", "person"), ("food", "apple"), ("household", "chair"), ("play", "backpack"),
)  # fmt: skip
"""Theme and the first name of it in OBJECTS; things of one theme meet more often in a scene."""

CLASSES_24: tuple[str, ...] = (
    "car", "bus", "train", "airplane", "boat",
    "person", "dog", "cat", "bird", "horse", "elephant", "sheep",
    "apple", "banana", "carrot", "pizza", "donut", "cake",
    "chair", "potted plant", "clock", "book", "umbrella", "backpack",
)  # fmt: skip
"""The classes of the `scenes_64` presets: those that stay easy to tell apart at 18 pixels."""

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (222, 40, 38),
    "orange": (247, 132, 20),
    "yellow": (250, 216, 40),
    "green": (45, 165, 65),
    "blue": (38, 98, 225),
    "purple": (136, 58, 190),
    "pink": (250, 140, 196),
    "brown": (122, 74, 40),
    "black": (38, 38, 42),
    "white": (243, 243, 243),
}
"""GenEval's ten colours, in its order, as RGB in 0..255."""


def _spread_tints() -> dict[str, tuple[int, int, int]]:
    shades = {"strong": (0.95, 0.9), "pale": (0.5, 0.95), "deep": (0.85, 0.5)}  # saturation and value
    tints = {
        f"{shade} {30 * step}": colorsys.hsv_to_rgb(step / 12, *values)
        for shade, values in shades.items()
        for step in range(12)
    } | {f"grey {round(100 * v)}": (v, v, v) for v in (0.15, 0.35, 0.5, 0.65, 0.8, 0.95)}
    return {name: tuple(round(255 * channel) for channel in rgb) for name, rgb in tints.items()}


NAMELESS_TINTS = _spread_tints()
"""42 tints all around the colour circle that no caption and no question names; RGB in 0..255."""

NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five")


def theme_of(name: str) -> str:
    """Theme of a GenEval object name."""
    starts = dict((first, theme) for theme, first in THEMES)
    theme = ""
    for candidate in OBJECTS:
        theme = starts.get(candidate, theme)
        if candidate == name:
            return theme
    raise ValueError(f"unknown object {name!r}; the scenes know {', '.join(OBJECTS)}")


def with_article(phrase: str) -> str:
    """`a` or `an` before a phrase, as GenEval's prompts choose it (by the first letter)."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def plural(name: str) -> str:
    """Plural as GenEval's prompts write it: `es` after s, else `s` (`persons`, `knifes`); skis and scissors stay."""
    if name in ("skis", "scissors"):
        return name
    return f"{name}es" if name.endswith("s") else f"{name}s"
