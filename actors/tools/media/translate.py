"""Text from one language into another: a translation model, or a language model that is asked to translate, this
tool's own or the company's.

How a family is told the languages differs: Marian knows one pair, or has the target's code as the first word; NLLB,
M2M100 and mBART have a code for each language; T5 is told in words, and so is a language model that converses.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from ....runtime.errors import CallboardError, Cancelled
from ....runtime.matching import did_you_mean
from ....schemas.serve import ChatMessage, FinishReason, Generate
from ..context import ToolContext
from ..errors import ToolError, ToolSetupFailed
from .model_tool import ModelOptions, ModelTool, stopping
from .models import LoadedModel, ModelKind

_TRANSLATES = ModelKind("translation", ("SEQ_TO_SEQ_CAUSAL_LM", "CAUSAL_LM"), "hf:facebook/nllb-200-distilled-600M")
_WITH_CODES = ("m2m_100", "nllb-moe", "mbart")
_TOLD_IN_WORDS = ("t5", "mt5", "umt5", "switch_transformers", "longt5")
_WITH_FIRST_WORD = "marian"
_NO_LIMIT = 1 << 20
# Within the tool's own time limit.
ENGINE_TIMEOUT_S = 280.0
_ASKED = "Translate the following text from {source} into {target}. Answer with the translation alone.\n\n{text}"


class TranslateOptions(ModelOptions, frozen=True, forbid_unknown_fields=True):
    """`engine`: the actor that is asked, in the place of a model of the tool's own."""

    engine: str = ""


class Translate(
    ModelTool, name="translate", read_only=True, idempotent=True, open_world=False, timeout=300.0, tags=("text",)
):
    """A model and its tokenizer, or the address of an engine."""

    kind = _TRANSLATES
    _tokenizer: Any = None
    _codes: dict[str, int]

    def __init__(self, model: str = "", device: str = "", engine: str = "") -> None:
        super().__init__(model, device)
        self.engine = engine

    def setup(self) -> None:
        if not self.engine:
            super().setup()

    def load_parts(self, loaded: LoadedModel) -> None:
        self._tokenizer = loaded.part("AutoTokenizer")
        self._codes = _language_codes(self._tokenizer, loaded.family)
        if not loaded.model.config.is_encoder_decoder and not getattr(self._tokenizer, "chat_template", None):
            raise ToolSetupFailed(
                f"the model '{loaded.name}' continues text and cannot be asked: it has no chat template",
                hint=f"take one that follows instructions, or a translation model such as {self.kind.example}",
            )

    def drop_parts(self) -> None:
        self._tokenizer = None

    def run(
        self,
        text: str,
        target: str,
        context: ToolContext,
        source: str = "",
        max_tokens: Annotated[int, msgspec.Meta(ge=1, le=8192)] = 1024,
    ) -> str:
        """Translate a text into another language.

        Args:
            text: what to translate
            target: the language to translate into, by its name or code: German, de, deu_Latn
            source: the language of the text; some models need it
            max_tokens: at most this long
        """
        if not text.strip():
            raise ToolError("there is nothing to translate: the text is empty")
        if not target.strip():
            raise ToolError("there is no language to translate into", hint="name it in `target`")
        if self.engine:
            return self._by_engine(text, source.strip(), target.strip(), max_tokens, context)
        with self.computing(context):
            inputs, options = self._prepared(text, source.strip(), target.strip())
            room = self._room(inputs["input_ids"].shape[1])
            try:
                tokens = self.loaded.model.generate(
                    **inputs.to(self.loaded.device),
                    **options,
                    max_new_tokens=min(max_tokens, room),
                    do_sample=False,
                    stopping_criteria=stopping(context),
                )
            except (ValueError, RuntimeError, IndexError) as error:
                raise ToolError(f"the model '{self.loaded.name}' cannot translate this: {error}") from error
            context.check()
            if not self.loaded.model.config.is_encoder_decoder:
                tokens = tokens[:, inputs["input_ids"].shape[1] :]
            return self._tokenizer.batch_decode(tokens, skip_special_tokens=True)[0].strip()

    def _by_engine(self, text: str, source: str, target: str, max_tokens: int, context: ToolContext) -> str:
        asked = ChatMessage("user", _asked(text, source, target))
        request = Generate(messages=(asked,), max_tokens=max_tokens, client="translate")
        try:
            done = context.ask(self.engine, request, ENGINE_TIMEOUT_S)
        except Cancelled:
            raise
        except CallboardError as error:
            raise ToolError(f"'{self.engine}' cannot translate this: {error}", hint=error.hint) from error
        if done.finish_reason is FinishReason.LENGTH:
            raise ToolError(f"the translation is longer than {max_tokens} tokens", hint="translate it in parts")
        return done.text.strip()

    def _prepared(self, text: str, source: str, target: str) -> tuple[Any, dict[str, Any]]:
        """The model's input, and what `generate` is told beside it."""
        family, tokenizer = self.loaded.family, self._tokenizer
        if not self.loaded.model.config.is_encoder_decoder:
            inputs = tokenizer.apply_chat_template(
                [{"role": "user", "content": _asked(text, source, target)}],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
            )
            return self._fitting(inputs), {}
        options: dict[str, Any] = {}
        if family in _WITH_CODES:
            options["forced_bos_token_id"] = self._codes[self._code("target", target)]
            tokenizer.src_lang = self._code("source", _named(source))
        elif family == _WITH_FIRST_WORD and self._codes:
            text = f">>{self._code('target', target)}<< {text}"
        elif family == _WITH_FIRST_WORD:
            self._check_pair(source, target)
        elif family in _TOLD_IN_WORDS:
            text = f"translate {_named(source)} to {target}: {text}"
        return self._fitting(tokenizer(text, return_tensors="pt")), options

    def _code(self, argument: str, language: str) -> str:
        """The model's own code for a language. ToolError that names those that it has."""
        if language in self._codes:
            return language
        lower = {code.lower(): code for code in self._codes}
        if language.lower() in lower:
            return lower[language.lower()]
        # deu for deu_Latn, en for en_XX: the only one that begins so.
        starting = [code for code in self._codes if code.lower().startswith(f"{language.lower()}_")]
        if len(starting) == 1:
            return starting[0]
        meant = did_you_mean(language, self._codes)
        known = ", ".join(sorted(self._codes))
        raise ToolError(
            f"`{argument}`: the model '{self.loaded.name}' has no language '{language}'",
            hint=(f"did you mean {meant}? " if meant else "") + f"it has {known}",
        )

    def _check_pair(self, source: str, target: str) -> None:
        """A model of one pair translates that, whatever it is asked for: say so instead."""
        for argument, given in (("source", source), ("target", target)):
            has = self._tokenizer.init_kwargs.get(f"{argument}_lang")
            if given and has and given.lower() != str(has).lower():
                raise ToolError(
                    f"the model '{self.loaded.name}' has the {argument} language '{has}', not '{given}'",
                    hint=f"set `{argument}` to {has}, or have the tool run with another model",
                )

    def _fitting(self, inputs: Any) -> Any:
        """The same, unless it is longer than the model reads: what is beyond would be left out in silence."""
        length = inputs["input_ids"].shape[1]
        if length > self._length:
            raise ToolError(
                f"the text has {length} tokens; the model '{self.loaded.name}' reads {self._length}",
                hint="translate it in parts",
            )
        # Some tokenizers give what no translation model takes.
        inputs.pop("token_type_ids", None)
        return inputs

    def _room(self, num_read: int) -> int:
        """How many tokens the model can write: it counts those that it read only where it continues them. Two more are
        where its answer begins."""
        taken = 2 if self.loaded.model.config.is_encoder_decoder else num_read
        return max(1, self._length - taken)

    @property
    def _length(self) -> int:
        """The positions that the model tells apart; T5 has none and takes any length."""
        return getattr(self.loaded.model.config, "max_position_embeddings", None) or _NO_LIMIT


def _asked(text: str, source: str, target: str) -> str:
    return _ASKED.format(source=source or "its language", target=target, text=text)


def _named(source: str) -> str:
    if not source:
        raise ToolError("this model must be told the language of the text", hint="name it in `source`")
    return source


def _language_codes(tokenizer: Any, family: str) -> dict[str, int]:
    """Each language that the tokenizer has a token for, and the token: empty where the family has none."""
    if family == _WITH_FIRST_WORD:
        vocabulary = tokenizer.get_vocab()
        return {token[2:-2]: number for token, number in vocabulary.items() if token[:2] == ">>" and token[-2:] == "<<"}
    if family not in _WITH_CODES:
        return {}
    if codes := getattr(tokenizer, "lang_code_to_id", None):
        return {str(code): int(number) for code, number in codes.items()}
    # NLLB's are its own additional special tokens: eng_Latn and so on.
    names = [token for token in tokenizer.all_special_tokens if token[:3].isalpha() and token[3:4] == "_"]
    return {name: int(tokenizer.convert_tokens_to_ids(name)) for name in names}


def translate(options: TranslateOptions) -> Translate:
    """The entry point."""
    return Translate(options.model, options.device, options.engine)
