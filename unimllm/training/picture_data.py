"""The pictures of `train/tokenizer.py`: those of --data or of scenes, and those that a run is validated on."""

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from transformers import PreTrainedConfig

from unimllm.data.picture_index import PictureIndex, open_pictures
from unimllm.data.picture_shards import FolderShard
from unimllm.data.pictures import PictureSource
from unimllm.errors import UserError
from unimllm.scenes.sources import ScenePictures
from unimllm.training.batches import SampleSource
from unimllm.training.checkpoint import index_folder, latest, read_run
from unimllm.training.loop import start_processes
from unimllm.training.presets import TokenizerRecipe
from unimllm.training.validation import HeldOut

OF_DATA = ("flip", "random_crop")
"""Fields of a recipe that are about pictures of --data alone."""
ORDERS = {"semantic": 1, "pixel": 2, "decoder": 3, "joint": 4, "vae": 6}
"""Numbers of the orders in which stages go through the pictures."""
COMMON_ORDER = 5
HELD_OUT_SEED = 0


def check_places(args: Namespace, recipe: TokenizerRecipe) -> None:
    """UserError where pictures are missing, and where validation and its steps do not meet."""
    if not args.data and recipe.world is None and args.dry_run is None:
        raise UserError(f"--preset {args.preset} trains on pictures: name a folder, .tar or .parquet files with --data")
    for name in ("validation_data", "strict"):
        if getattr(args, name) and not args.data:
            raise UserError(f"--{name.replace('_', '-')} is about --data, which is not given: scenes need none of it")
    for name in OF_DATA:
        if name in args.overrides and recipe.world is not None and not args.data:
            raise UserError(f"--{name} is about --data, which is not given: scenes are drawn whole")
    if args.validation_data and not recipe.train.validate_every:
        raise UserError("--validation-data is for every --train.validate_every steps, which is 0; set that too")
    if args.overrides.get("train.validate_every") and args.data and not args.validation_data:
        raise UserError(
            "--train.validate_every needs pictures that are not trained on: name them with --validation-data"
        )


def open_index(args: Namespace) -> PictureIndex:
    """The pictures of --data, the same for all processes; rank 0 says what they are."""
    rank, world_size = start_processes()
    index = open_pictures(args.data, index_folder(args.output_dir), rank, world_size)
    tell_faults(index, "data", args.strict)
    if rank == 0:
        found = latest(args.output_dir)
        before = read_run(found)["recipe"].get("data") if found else None
        if before and before["fingerprint"] != index.fingerprint:
            print(f"warning: {found.name} was trained on other pictures: {differences(before, args.data, len(index))}; "
                  "from here on the run differs from one without a break", flush=True)  # fmt: skip
    return index


def differences(before: dict, places: list[Path], num_pictures: int) -> str:
    """What differs between the pictures that run.json notes and those of --data: places, or else what lies there."""
    now = [str(place) for place in places]
    told = [f"{place} is left out" for place in before["paths"] if place not in now]
    told += [f"{place} is new" for place in now if place not in before["paths"]]
    return "; ".join([*(told or ["other files"]), f"{before['pictures']:,} pictures -> {num_pictures:,}"])


def tell_faults(index: PictureIndex, what: str, strict: bool) -> None:
    """Rank 0 says what an index holds; with `strict`, UserError for files of it that cannot be read."""
    if start_processes()[0] == 0:
        print(f"{what}: {index}", *index.faults, sep="\n", flush=True)
    if strict and index.faults:
        raise UserError(f"--strict: {index.faults[0]}")


def make_source(
    index: PictureIndex | None, scenes, recipe: TokenizerRecipe, stage: str, config: PreTrainedConfig, strict: bool
) -> SampleSource:
    """Pictures of --data, or else scenes; another order for each stage, unless `first_step` asks for the common one."""
    seed = recipe.train.seed + 1000 * (ORDERS[stage] if recipe.first_step is None else COMMON_ORDER)
    if index:
        return PictureSource(
            index, config.image_size, seed, recipe.decode_threads, config.resample, recipe.flip, recipe.random_crop,
            strict,
        )  # fmt: skip
    others = recipe.world.open_others() if recipe.other_share else None
    return ScenePictures(*scenes, seed, others, recipe.other_share)


def open_held_out(
    args: Namespace, recipe: TokenizerRecipe, index: PictureIndex | None, scenes, config: PreTrainedConfig
) -> dict[str, HeldOut]:
    """Of --validation-data some centre squares, the same in every run, none mirrored; of scenes their validation split.

    Raises:
        UserError: nothing is there, or a picture of it is trained on.
    """
    most = recipe.train.validation_rows
    if not recipe.train.validate_every:
        return {}
    if not index:
        return {"scenes": HeldOut(ScenePictures(*scenes, HELD_OUT_SEED, split="validation"), most)}
    rank, world_size = start_processes()
    if not args.validation_data:
        if rank == 0:
            print("nothing is validated: --validation-data names pictures that are not trained on", flush=True)
        return {}
    held_out = open_pictures(args.validation_data, index_folder(args.output_dir), rank, world_size)
    check_apart(held_out, index)
    tell_faults(held_out, f"validation on {min(most, len(held_out)):,} pictures of", args.strict)
    source = PictureSource(
        held_out, config.image_size, HELD_OUT_SEED, recipe.decode_threads, config.resample, flip=0.0,
        strict=args.strict,
    )  # fmt: skip
    return {"pictures": HeldOut(source, min(most, len(held_out)))}


def check_apart(held_out: PictureIndex, index: PictureIndex) -> None:
    """UserError if files of one index lie in the other too."""
    held = set(real_files(held_out))
    shared = next((file for file in real_files(index) if file in held), None)
    if shared:
        raise UserError(f"--validation-data is in --data too: {shared}; hold out pictures that are not trained on")


def real_files(index: PictureIndex) -> Iterator[str]:
    """The shards of an index, of a folder its pictures; links to them followed, but not within a folder."""
    for shard in index.shards:
        if isinstance(shard, FolderShard):
            root = Path(shard.root).resolve()
            yield from (f"{root}/{shard.relative(i)}" for i in range(len(shard.names)))
        else:
            yield str(Path(shard.path).resolve())
