"""CheersProcessor: conversations and pictures to inputs of CHEERS."""

from unimllm.processing import ConversationProcessor
from unimllm.vocabulary import CHEERS_TOKENS


class CheersProcessor(ConversationProcessor):
    """See `ConversationProcessor`; the prompt without its text the model makes itself, of `<no_mean>`."""

    image_tokens = CHEERS_TOKENS
