"""What a run of train/pretrain.py or train/sft.py will need, before it is started: `--dry-run`.

Built on the meta device from the preset's sizes; weights, gradients, optimiser state and activations are counted as in
`training.plan`. The logits are counted apart: they are the largest tensors of a step where vocabularies are large.
"""

from dataclasses import replace

import torch
from transformers import AutoTokenizer, PreTrainedModel

from unimllm.chat_templates import TRAINING_TEMPLATES, VICUNA
from unimllm.conversation import ConversationTokenizer
from unimllm.data.picture_ids import OnlinePixels, StoredCodes
from unimllm.data.sample_index import open_samples, parse_data
from unimllm.data.sample_tokens import SampleTokenizer
from unimllm.data.shown_samples import shown_samples
from unimllm.data.survey import survey_first, told_counts, told_faults
from unimllm.discrete.four_bits import BITS, linear_layers
from unimllm.errors import NothingUsable, UserError
from unimllm.inference import DEFAULT_MODEL
from unimllm.training.families import family_of
from unimllm.training.plan import BF16_SHARE, count, count_trained, on_a_gpu, row, saved_bytes, state_bytes
from unimllm.training.presets import SftRecipe
from unimllm.training.start_model import tokenizer_at_hand
from unimllm.training.throughput import PEAK_FLOPS
from unimllm.vocabulary import add_tokens


def build_on_meta(recipe: SftRecipe) -> PreTrainedModel:
    """The model without its numbers, in seconds at any size."""
    with torch.device("meta"):
        return family_of(recipe.model).model_class(recipe.model)


def language_model_plan(name: str, model, recipe: SftRecipe, num_processes: int, flops_per_token: float | None) -> str:
    """The plan of a run, in lines.

    Args:
        name: of the preset.
        model: on the meta device, what is not trained frozen.
        flops_per_token: of a training step; None: not known, no time is told.

    Raises:
        UserError: the batch cannot be shared among the processes.
    """
    recipe = replace(recipe, train=on_a_gpu(recipe.train))
    train = recipe.train
    micro, accumulation = train.per_device(num_processes)
    tokens = train.batch_size * recipe.max_length
    size, positions = model.config.image_size, model.config.num_positions
    lines = [
        name,
        row("picture", f"{size} x {size} pixels, {positions} ids"),
        row("batch", f"{train.batch_size} = {num_processes} process(es) x {micro} rows x {accumulation} in turn; "
                     f"{tokens:,} ids"),
        row("steps", f"{train.max_steps:,} = {train.max_steps * tokens / 1e6:,.1f} M ids"),
        "parameters",
    ]  # fmt: skip
    apart = model.image_tokenizer
    for part_name, part in family_of(model.config).parts(model).items():
        trained = count_trained(part)
        state = "frozen" if not trained else "trained" if trained == count(part) else f"{trained / 1e6:,.2f} M trained"
        lines.append(row(f"  {part_name}", f"{count(part) / 1e6:9,.2f} M  {state}"))
    held = count(model) - count(apart)  # the image tokenizer stays whole and in float32 whatever the engine does
    lines.append(row("  all", f"{count(model) / 1e6:9,.2f} M, {count_trained(model) / 1e6:,.2f} M trained"))
    lines.append(f"memory per GPU (estimate; ZeRO {train.zero_stage}, {train.describe_precision()})")
    four_bits = linear_layers(model.language_model).values() if recipe.quantize_base else ()
    in_four_bits = sum(layer.weight.numel() for layer in four_bits)
    memory = state_bytes(held - in_four_bits, count_trained(model), train, num_processes)
    if in_four_bits:
        memory["weights in 4 bits"] = BITS / 8 * in_four_bits
    memory |= {"image tokenizer, float32": 4.0 * count(apart)} | activation_bytes(model, recipe, micro)
    lines += [row(f"  {what}", f"{size / 2**30:9.2f} GiB") for what, size in memory.items()]
    lines.append(row("  all", f"{sum(memory.values()) / 2**30:9.2f} GiB, and 1 to 3 of working space"))
    if flops_per_token:
        hours = train.max_steps * tokens * flops_per_token / num_processes / (0.4 * PEAK_FLOPS["H100"]) / 3600
        lines.append(row("time", f"{hours:,.1f} hours on {num_processes} H100 at an MFU of 40 % (estimate)"))
    return "\n".join(lines)


def activation_bytes(model, recipe: SftRecipe, micro: int) -> dict[str, float]:
    """Bytes that a micro-batch keeps until the backward pass: in the language model, and what the family adds."""
    train, text, length = recipe.train, model.config.text_config, recipe.max_length
    is_half = train.autocast() or train.precision == "bf16"
    block = model.language_model.get_decoder().layers[0]
    hidden = torch.empty(1, length, text.hidden_size, device="meta", requires_grad=True)
    rotary = [torch.empty(1, length, block.self_attn.head_dim, device="meta") for _ in range(2)]
    inside = saved_bytes(lambda x: block(x, position_embeddings=tuple(rotary)), hidden)
    layers = text.num_hidden_layers
    kept = layers * hidden.nbytes + inside if train.gradient_checkpointing else layers * inside
    share = BF16_SHARE if is_half else 1.0
    by_row = {"activations": share * kept} | family_of(model.config).row_bytes(model, recipe, share)
    return {f"{what}, {micro} rows": micro * size for what, size in by_row.items()}


def describe_data(args, tokenizer: SampleTokenizer, num_ids: int) -> list[str]:
    """A line for each place of --data and --validation-data: how many samples lie there, and the tasks of the first.

    Below it what is wrong with the files and with the first samples, and one of each task as it is read; last, how
    often the run goes through the samples of --data.

    Args:
        num_ids: of all rows of the run.
    """
    pictures = StoredCodes(args.codes, None, 0) if args.codes else OnlinePixels(None)
    sources = [parse_data(word) for word in args.data]
    places = [("data", source.place, f", weight {source.weight:g}") for source in sources]
    places += [("validation", place, "") for place in args.validation_data]
    lines, empty, held = [], [], 0.0  # ids of all samples of --data, if the first are like the others
    for what, place, weight in places:
        try:
            index = open_samples(place, args.format, args.image_root)
        except NothingUsable as error:  # where others have samples, the run goes on without
            empty.append(error)
            if args.strict or what != "data" or len(empty) == len(sources):
                raise
            lines.append(row(what, f"{error}; left out"))
            continue
        survey = survey_first(index, tokenizer, pictures.check)
        first = f"the first {len(survey.lengths):,}: {told_counts(survey)}"
        lines += [row(what, f"{index}{weight}; {first}"), *told_faults(index, survey.findings)]
        lines += shown_samples(index, survey, tokenizer)
        held += len(index) * float(survey.lengths.mean()) if what == "data" else 0
    if held:
        told = f"{num_ids / held:.3g} times through the samples, if rows are full and all samples are like the first"
        lines.append(row("epochs", told))
    return lines


def planned_tokenizer(args, recipe: SftRecipe) -> tuple[SampleTokenizer, list[str]]:
    """What tokenizes samples for a plan, at the preset's sizes, and a line to tell where that is not the run's own.

    Another text tokenizer takes the place of one that is not on this machine; by it no sample is too long.
    """
    image_tokens, notes = family_of(recipe.model).processor_class.image_tokens, []
    limits = [recipe.max_length, recipe.model.text_config.max_position_embeddings]
    try:
        text_tokenizer = tokenizer_at_hand(args, recipe)
    except UserError as error:
        text_tokenizer, limits = AutoTokenizer.from_pretrained(DEFAULT_MODEL), [1 << 40]
        add_tokens(text_tokenizer, image_tokens)
        text_tokenizer.chat_template = VICUNA  # it takes a system turn
        notes = [f"the run's text tokenizer is not at hand: another one reads here, and no sample is too long: {error}"]
    if recipe.training_template:
        text_tokenizer.chat_template = TRAINING_TEMPLATES[recipe.training_template]
    conversation = ConversationTokenizer(text_tokenizer, recipe.model.num_positions, image_tokens)
    return SampleTokenizer(conversation, *limits), notes
