"""A sheet of small pictures in rows, each with a line or two of text under it."""

import textwrap

from PIL import Image, ImageDraw, ImageFont

CELL = 160  # pixels of an enlarged picture, at least
MARGIN, FONT_SIZE, NUM_LINES = 12, 13, 2  # pixels, pixels, lines of text under a picture
GAP = 2  # pixels between pictures that stand over each other
INK, PAPER = (40, 40, 40), (255, 255, 255)


def draw_grid(cells: list[list[Image.Image]], labels: list[str], num_columns: int, title: str = "") -> Image.Image:
    """Draw a grid, its pictures enlarged by a whole factor without smoothing.

    Args:
        cells: square pictures of one size; those of one cell stand over each other, equally many in every cell.
        labels: a text for each cell; what does not fit NUM_LINES lines is cut.
        num_columns: cells in a row.
        title: a line over the whole.
    """
    side = cells[0][0].width * -(-CELL // cells[0][0].width)
    font = ImageFont.load_default(FONT_SIZE)
    line = round(FONT_SIZE * 1.3)
    pictures_height = len(cells[0]) * (side + GAP) - GAP
    width, height = side + MARGIN, pictures_height + NUM_LINES * line + MARGIN
    num_columns = min(num_columns, len(cells))
    top = MARGIN + (line + MARGIN if title else 0)
    size = (num_columns * width + MARGIN, top + -(-len(cells) // num_columns) * height)
    sheet = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN, MARGIN), title, fill=INK, font=font)
    for i, (cell, label) in enumerate(zip(cells, labels, strict=True)):
        x, y = MARGIN + i % num_columns * width, top + i // num_columns * height
        for row, picture in enumerate(cell):
            sheet.paste(picture.resize((side, side), Image.Resampling.NEAREST), (x, y + row * (side + GAP)))
        for index, text in enumerate(textwrap.wrap(label, round(side / (0.55 * FONT_SIZE)))[:NUM_LINES]):
            pen.text((x, y + pictures_height + index * line), text, fill=INK, font=font)
    return sheet
