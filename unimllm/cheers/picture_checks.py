"""What can be wrong with the pictures of a call, each in one line: their shapes, their placeholders, their times.

None waits for a GPU: shapes are known without it, and ids come here on the CPU.

Shapes: B rows, T positions, P pictures, N positions of a picture, C channels of the latent, h along its side.
"""

import torch


def check_pixels(pixel_values: torch.Tensor, image_size: int, name: str = "pixel_values") -> None:
    """ValueError unless pictures are one tensor, (P, 3, image_size, image_size); `name` is theirs in the message."""
    if not isinstance(pixel_values, torch.Tensor):
        shapes = {tuple(getattr(one, "shape", ())) for one in pixel_values} if hasattr(pixel_values, "__len__") else ""
        found = f" of {', '.join(map(str, sorted(shapes)))}" if shapes else ""
        raise ValueError(
            f"{name} are a {type(pixel_values).__name__}{found}; give one tensor (pictures, 3, {image_size}, "
            f"{image_size}): all pictures of a batch have the size that this model reads"
        )
    shape = tuple(pixel_values.shape)
    if len(shape) != 4 or shape[1] != 3:
        raise ValueError(f"{name} are {shape}; pictures are (pictures, 3, {image_size}, {image_size})")
    if shape[2:] != (image_size, image_size):
        raise ValueError(f"{name} are {shape[2:]}; resize to {image_size} x {image_size}, which this model reads")


def kinds_of_pictures(
    input_ids: torch.Tensor, is_picture: torch.Tensor, num_pictures: int, num_positions: int
) -> torch.Tensor:
    """The placeholder id of each picture in reading order, (P,).

    Args:
        input_ids: (B, T), on the CPU.
        is_picture: (B, T) bool, where placeholders are.

    Raises:
        ValueError: there are not N placeholders for every picture, or those of one do not stand side by side, all to
            read or all to draw.
    """
    kinds = input_ids[is_picture]
    if len(kinds) != num_pictures * num_positions:
        raise ValueError(
            f"{len(kinds)} image placeholders but {num_pictures} pictures of {num_positions} positions "
            f"({num_pictures * num_positions}); give {num_positions} image_token_id (to draw: image_gen_token_id) for "
            "each picture"
        )
    kinds = kinds.view(num_pictures, num_positions)
    rows, places = (where.view(num_pictures, num_positions) for where in is_picture.nonzero(as_tuple=True))
    is_run = (rows == rows[:, :1]) & (places - places[:, :1] == torch.arange(num_positions))
    if broken := (~(is_run & (kinds == kinds[:, :1])).all(1)).nonzero().flatten().tolist():
        raise ValueError(
            f"picture {broken[0] + 1} of {num_pictures} is no run of {num_positions} equal placeholders in one row; "
            "nothing may stand between them, nor image_token_id (to read) beside image_gen_token_id (to draw)"
        )
    return kinds[:, 0]


def check_times(
    t: torch.Tensor | None, noise: torch.Tensor | None, num_pictures: int, latent_shape: tuple[int, int, int]
) -> None:
    """ValueError where times are not (P,) or, on the CPU, outside 0..1, or noise is not (P, C, h, h)."""
    if t is not None and tuple(t.shape) != (num_pictures,):
        raise ValueError(f"t is {tuple(t.shape)}; it is one time for each of {num_pictures} pictures")
    if t is not None and t.device.type == "cpu" and not ((t >= 0) & (t <= 1)).all():  # else it would wait for a GPU
        raise ValueError(f"t is {t.tolist()}; times are between 0 (noise) and 1 (the picture)")
    if noise is not None and tuple(noise.shape) != (num_pictures, *latent_shape):
        raise ValueError(f"noise is {tuple(noise.shape)}; it is {(num_pictures, *latent_shape)}, as the latents are")
