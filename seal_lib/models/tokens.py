"""Texts → token ids: what a model reads, what it is taught to write, and the ids that end a text.

Tokenizers differ in what they add by themselves: Llama, Mistral and Gemma put a BOS first, some an EOS last. Chat
models end a turn with an id of their own, which their ``generation_config`` lists beside (or instead of) EOS.
"""

from typing import TYPE_CHECKING

from seal_lib.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def read_ids(text: str, tokenizer: "PreTrainedTokenizerBase", **options) -> list[int]:
    """Tokens of a text that is read and goes on, BOS included where the tokenizer adds one, without what it appends.

    After a prompt that ends in end-of-text (or a separator) a model has nothing to continue.

    Args:
        options: passed to the tokenizer.
    """
    ids = list(tokenizer(text, **options)["input_ids"])
    if not ids or ids[-1] not in tokenizer.all_special_ids:
        return ids
    written = list(tokenizer(text, add_special_tokens=False, **options)["input_ids"])
    if not written:
        return ids[:-1] if ids[-1] == tokenizer.eos_token_id else ids
    ends = (stop for stop in range(len(written), len(ids) + 1) if ids[stop - len(written) : stop] == written)
    return ids[: next(ends, None)]


def written_ids(text: str, end: int, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Tokens of a text as a model writes it after a prompt: no BOS, control tokens spelt out, ``end`` last."""
    plain = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return [*plain, end]


def ends(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> tuple[int, ...]:
    """Every id that ends a text: the tokenizer's EOS and those that the model's ``generation_config`` lists.

    Raises:
        DataError: it lists what is no id, which no text would end with.
    """
    listed = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    listed = listed if isinstance(listed, list | tuple) else [listed]
    if odd := [end for end in listed if end is not None and (not isinstance(end, int) or isinstance(end, bool))]:
        raise DataError(
            f"generation_config.json: eos_token_id holds {odd[0]!r}, which is no id; write the token's number."
        )
    return tuple(dict.fromkeys(end for end in (tokenizer.eos_token_id, *listed) if end is not None))


def turn_end(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> int:
    """The id with which the model was taught to end what it writes, so that training does not teach it another.

    For a chat model the first of `ends` that its chat template puts after a reply, else the tokenizer's EOS.

    Raises:
        DataError: there is none.
    """
    if getattr(tokenizer, "chat_template", None):
        said = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "reply"}]
        after = tokenizer.apply_chat_template(said, tokenize=False).rpartition("reply")[2]
        known = ends(model, tokenizer)
        for token in tokenizer(after, add_special_tokens=False)["input_ids"]:
            if token in known:
                return token
    if tokenizer.eos_token_id is None:
        raise DataError("the tokenizer has no EOS token, so a text cannot be ended; set tokenizer.eos_token.")
    return tokenizer.eos_token_id
