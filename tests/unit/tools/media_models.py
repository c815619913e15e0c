"""Tiny models of the real classes with random weights, in folders as a hub has them.

They prove that a model is found, loaded, fed, run and read as it should be. What they say means nothing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SIDE = 32  # of the pictures that vision models are given, in pixels


def byte_tokenizer(*special: str, **options: Any) -> PreTrainedTokenizerFast:
    """A token for each byte, after <pad>, <s>, </s>, <unk> and `special`."""
    named = ["<pad>", "<s>", "</s>", "<unk>", *special]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*named, *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=list(special),
        **options,
    )


def _made(kind: Any, **options: Any) -> Any:
    """A configuration: its fields are those of all the classes above it, which a type checker does not follow."""
    return kind(**options)


def _saved(folder: Path, model: Any, *parts: Any) -> Path:
    model.eval().save_pretrained(folder)
    for part in parts:
        part.save_pretrained(folder)
    return folder


def detector(folder: Path) -> Path:
    """YOLOS: four boxes, one of the two labels "cat" and "hat" each."""
    from transformers import YolosConfig, YolosForObjectDetection, YolosImageProcessorPil

    torch.manual_seed(1)
    config = _made(
        YolosConfig,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=[SIDE, SIDE],
        patch_size=16,
        num_detection_tokens=4,
        use_mid_position_embeddings=False,
        initializer_range=0.5,
        id2label={0: "cat", 1: "hat"},
        label2id={"cat": 0, "hat": 1},
    )
    model = YolosForObjectDetection(config)
    torch.nn.init.normal_(model.vit.embeddings.detection_tokens)  # zeros would make all four boxes one
    return _saved(folder, model, YolosImageProcessorPil(size={"height": SIDE, "width": SIDE}))


def named_detector(folder: Path) -> Path:
    """OWL-ViT: it scores what is asked for by name."""
    from transformers import OwlViTConfig, OwlViTForObjectDetection, OwlViTImageProcessorPil

    torch.manual_seed(2)
    tokenizer = byte_tokenizer(model_max_length=16)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**small, "vocab_size": len(tokenizer), "max_position_embeddings": 16, "bos_token_id": 1, "eos_token_id": 2}
    vision = {**small, "image_size": SIDE, "patch_size": 16}
    config = OwlViTConfig(text_config=text, vision_config=vision, projection_dim=16)
    processor = OwlViTImageProcessorPil(
        size={"height": SIDE, "width": SIDE}, crop_size={"height": SIDE, "width": SIDE}, do_center_crop=False
    )
    return _saved(folder, OwlViTForObjectDetection(config), processor, tokenizer)


def segmenter(folder: Path) -> Path:
    """SegFormer: each pixel is "sky", "sea" or "land"."""
    from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessorPil

    torch.manual_seed(3)
    config = _made(
        SegformerConfig,
        num_encoder_blocks=2,
        depths=[1, 1],
        sr_ratios=[2, 1],
        hidden_sizes=[8, 8],
        patch_sizes=[3, 3],
        strides=[2, 2],
        num_attention_heads=[1, 1],
        mlp_ratios=[2, 2],
        decoder_hidden_size=8,
        initializer_range=0.5,
        id2label={0: "sky", 1: "sea", 2: "land"},
        label2id={"sky": 0, "sea": 1, "land": 2},
    )
    processor = SegformerImageProcessorPil(size={"height": SIDE, "width": SIDE})
    return _saved(folder, SegformerForSemanticSegmentation(config), processor)


def picker(folder: Path) -> Path:
    """ViLT: one of three answers to a question about a picture."""
    from transformers import ViltConfig, ViltForQuestionAnswering, ViltImageProcessorPil, ViltProcessor

    torch.manual_seed(4)
    tokenizer = byte_tokenizer(model_max_length=40)
    config = _made(
        ViltConfig,
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=SIDE,
        patch_size=16,
        max_position_embeddings=40,
        id2label={0: "yes", 1: "no", 2: "two"},
        label2id={"yes": 0, "no": 1, "two": 2},
    )
    processor = ViltProcessor(ViltImageProcessorPil(size={"shortest_edge": SIDE}), tokenizer)
    return _saved(folder, ViltForQuestionAnswering(config), processor)


CHAT_WITH_PICTURES = (
    "{% for message in messages %}{{ message['role'] }}: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def converser(folder: Path) -> Path:
    """LLaVA: a language model that is shown pictures in a conversation."""
    from transformers import (
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    torch.manual_seed(5)
    tokenizer = byte_tokenizer("<image>")
    small = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    config = _made(
        LlavaConfig,
        vision_config=_made(CLIPVisionConfig, **small, num_hidden_layers=2, image_size=SIDE, patch_size=16),
        text_config=_made(LlamaConfig, **small, num_hidden_layers=1, vocab_size=len(tokenizer), initializer_range=0.5),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
    )
    size = {"height": SIDE, "width": SIDE}
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=size),
        tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        chat_template=CHAT_WITH_PICTURES,
        num_additional_image_tokens=1,
    )
    return _saved(folder, LlavaForConditionalGeneration(config), processor)


def captioner(folder: Path) -> Path:
    """BLIP: a sentence for a picture, without a conversation."""
    from transformers import BlipConfig, BlipForConditionalGeneration, BlipImageProcessorPil, BlipProcessor

    torch.manual_seed(6)
    tokenizer = byte_tokenizer()
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = _made(
        BlipConfig,
        text_config={
            **small,
            "encoder_hidden_size": 16,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 64,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "sep_token_id": 2,
            "pad_token_id": 0,
            "initializer_range": 0.5,
        },
        vision_config={**small, "image_size": SIDE, "patch_size": 16},
        projection_dim=16,
    )
    size = {"height": SIDE, "width": SIDE}
    return _saved(
        folder, BlipForConditionalGeneration(config), BlipProcessor(BlipImageProcessorPil(size=size), tokenizer)
    )


def listener(folder: Path) -> Path:
    """Whisper: it hears speech in many languages."""
    from transformers import GenerationConfig, WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

    torch.manual_seed(7)
    tokens = (
        "<|endoftext|>",
        "<|startoftranscript|>",
        "<|en|>",
        "<|de|>",
        "<|translate|>",
        "<|transcribe|>",
        "<|startoflm|>",
        "<|startofprev|>",
        "<|nocaptions|>",
        "<|notimestamps|>",
        *(f"<|{step * 0.02:.2f}|>" for step in range(1501)),
    )
    tokenizer = _whisper_tokenizer(tokens)
    number = tokenizer.convert_tokens_to_ids
    config = _made(
        WhisperConfig,
        vocab_size=len(tokenizer),
        num_mel_bins=16,
        encoder_layers=1,
        encoder_attention_heads=2,
        decoder_layers=1,
        decoder_attention_heads=2,
        decoder_ffn_dim=16,
        encoder_ffn_dim=16,
        d_model=16,
        max_source_positions=1500,
        max_target_positions=32,
        decoder_start_token_id=number("<|startoftranscript|>"),
        pad_token_id=number("<|endoftext|>"),
        bos_token_id=number("<|endoftext|>"),
        eos_token_id=number("<|endoftext|>"),
        init_std=0.5,
    )
    model = WhisperForConditionalGeneration(config)
    model.generation_config = _made(
        GenerationConfig,
        decoder_start_token_id=number("<|startoftranscript|>"),
        eos_token_id=number("<|endoftext|>"),
        pad_token_id=number("<|endoftext|>"),
        is_multilingual=True,
        lang_to_id={"<|en|>": number("<|en|>"), "<|de|>": number("<|de|>")},
        task_to_id={"transcribe": number("<|transcribe|>"), "translate": number("<|translate|>")},
        no_timestamps_token_id=number("<|notimestamps|>"),
        max_length=24,
        begin_suppress_tokens=[],
        suppress_tokens=[],
    )
    return _saved(folder, model, WhisperFeatureExtractor(feature_size=16), tokenizer)


def _whisper_tokenizer(tokens: tuple[str, ...]) -> Any:
    from transformers import WhisperTokenizer

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*letters, *tokens[:1]])}
    tokenizer = WhisperTokenizer(vocab=vocabulary, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": list(tokens[1:10])})
    tokenizer.add_tokens(list(tokens[10:]))
    return tokenizer


def spelling_listener(folder: Path) -> Path:
    """wav2vec 2.0: a letter for each moment of sound (CTC)."""
    from transformers import Wav2Vec2Config, Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC

    torch.manual_seed(8)
    folder.mkdir(parents=True, exist_ok=True)
    letters = {token: number for number, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefgh"])}
    (folder / "vocab.json").write_text(json.dumps(letters))
    tokenizer = Wav2Vec2CTCTokenizer(str(folder / "vocab.json"))
    config = _made(
        Wav2Vec2Config,
        vocab_size=len(letters),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=(8, 8),
        conv_stride=(5, 8),
        conv_kernel=(10, 8),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        initializer_range=0.5,
        pad_token_id=0,
    )
    return _saved(folder, Wav2Vec2ForCTC(config), Wav2Vec2FeatureExtractor(), tokenizer)


def speaker(folder: Path) -> Path:
    """VITS: speech at 16,000 samples a second."""
    from transformers import VitsConfig, VitsModel, VitsTokenizer

    torch.manual_seed(9)
    folder.mkdir(parents=True, exist_ok=True)
    letters = {letter: number for number, letter in enumerate("_abcdefghijklmnopqrstuvwxyz '")}
    (folder / "vocab.json").write_text(json.dumps(letters))
    tokenizer = VitsTokenizer(str(folder / "vocab.json"), pad_token="_", unk_token=" ", phonemize=False)
    config = _made(
        VitsConfig,
        vocab_size=len(letters),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        ffn_dim=16,
        flow_size=16,
        spectrogram_bins=17,
        upsample_initial_channel=16,
        upsample_rates=[4, 4],
        upsample_kernel_sizes=[8, 8],
        resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[1]],
        prior_encoder_num_flows=2,
        prior_encoder_num_wavenet_layers=1,
        posterior_encoder_num_wavenet_layers=1,
        duration_predictor_num_flows=1,
        depth_separable_num_layers=1,
        sampling_rate=16000,
    )
    return _saved(folder, VitsModel(config), tokenizer)


def painter(folder: Path) -> Path:
    """Stable Diffusion at 16 pixels a side."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(10)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={piece: n for n, piece in enumerate(pieces)}, merges=[], model_max_length=24)
    text = _made(
        CLIPTextConfig,
        vocab_size=len(pieces),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=24,
        bos_token_id=len(pieces) - 2,
        eos_token_id=len(pieces) - 1,
    )
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(8, 8),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    vae = AutoencoderKL(
        block_out_channels=(8,),
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        norm_num_groups=4,
    )
    pipeline = _made(
        StableDiffusionPipeline,
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


def _seq2seq(name: str, vocab_size: int) -> dict[str, Any]:
    return {
        "vocab_size": vocab_size,
        "d_model": 16,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 16,
        "decoder_ffn_dim": 16,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 2,
        "init_std": 0.5,
        "model_type": name,
    }


LANGUAGES = ("eng_Latn", "deu_Latn", "fra_Latn")


def polyglot(folder: Path) -> Path:
    """NLLB: M2M100's model with NLLB's tokenizer, of three languages."""
    from transformers import M2M100Config, M2M100ForConditionalGeneration, NllbTokenizer

    torch.manual_seed(11)
    letters = {"\N{LOWER ONE EIGHTH BLOCK}": 4, **{chr(97 + n): 5 + n for n in range(26)}}
    vocabulary = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, **letters}
    tokenizer = NllbTokenizer(
        vocab=vocabulary, merges=[], src_lang="eng_Latn", tgt_lang="deu_Latn", extra_special_tokens=list(LANGUAGES)
    )
    options = _seq2seq("m2m_100", len(tokenizer)) | {"bos_token_id": 0, "pad_token_id": 1, "init_std": 2.0}
    return _saved(folder, M2M100ForConditionalGeneration(_made(M2M100Config, **options)), tokenizer)


def pair_translator(folder: Path, *targets: str) -> Path:
    """Marian: one pair of languages, or several targets that the first word of the text chooses."""
    from transformers import MarianConfig, MarianMTModel

    torch.manual_seed(12)
    tokenizer = byte_tokenizer(*(f">>{target}<<" for target in targets))
    options = _seq2seq("marian", len(tokenizer)) | {"decoder_vocab_size": len(tokenizer)}
    return _saved(folder, MarianMTModel(_made(MarianConfig, **options)), tokenizer)


def told_in_words(folder: Path) -> Path:
    """T5: told in words what to do."""
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(14)
    tokenizer = byte_tokenizer()
    config = _made(
        T5Config,
        vocab_size=len(tokenizer),
        d_model=16,
        d_kv=8,
        d_ff=16,
        num_layers=1,
        num_heads=2,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=2,
        initializer_factor=5.0,
    )
    return _saved(folder, T5ForConditionalGeneration(config), tokenizer)


def instructed(folder: Path, *, with_template: bool = True) -> Path:
    """Llama: a language model that follows instructions, or that only continues text."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(13)
    tokenizer = byte_tokenizer()
    if with_template:
        tokenizer.chat_template = (
            "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}assistant: "
        )
    config = _made(
        LlamaConfig,
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=512,
        initializer_range=0.5,
    )
    return _saved(folder, LlamaForCausalLM(config), tokenizer)
