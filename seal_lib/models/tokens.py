"""Token ids of texts that a model reads or learns to write, and the ids that end a text.

Tokenizers differ in the tokens that they add: those of Llama, Mistral and Gemma prepend a BOS, some append an EOS. Chat
models end a turn with an id of their own, which their ``generation_config`` lists besides (or instead of) EOS.
"""

from typing import TYPE_CHECKING

from seal_lib.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def read_ids(text: str, tokenizer: "PreTrainedTokenizerBase", **options) -> list[int]:
    """Return the token ids of a prompt, with the BOS that the tokenizer prepends, without tokens that it appends.

    After a prompt that ends in end-of-text (or a separator) a model has nothing to continue.
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
    """Return the token ids of a completion: no BOS, control tokens in the text split into plain ones, ``end`` last."""
    plain = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return [*plain, end]


def ends(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> tuple[int, ...]:
    """Return all ids that end a text: the tokenizer's EOS and those in the model's ``generation_config``.

    Raises:
        DataError: ``generation_config`` lists a value that is not an id.
    """
    listed = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    listed = listed if isinstance(listed, list | tuple) else [listed]
    if odd := [end for end in listed if end is not None and (not isinstance(end, int) or isinstance(end, bool))]:
        raise DataError(
            f"generation_config.json: eos_token_id holds {odd[0]!r}, which is no id; write the token's number."
        )
    return tuple(dict.fromkeys(end for end in (tokenizer.eos_token_id, *listed) if end is not None))


def turn_end(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> int:
    """Return the id with which the model has learnt to end a reply, so that finetuning does not teach it another.

    For a chat model it is the first of `ends` that the chat template puts after a reply, else the tokenizer's EOS.

    Raises:
        DataError: there is no such id.
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
