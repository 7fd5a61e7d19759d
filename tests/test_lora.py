"""LoRAs of every layout and learned words make stock's picture; what does not fit says how much of it does."""

import json
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from families import WIDTH, write_folder
from lora_files import as_kohya, as_old_diffusers, as_peft, matrices
from safetensors.torch import save_file
from test_compatibility import ALMOST_EQUAL, NEGATIVE, of_stock, ours

from sdcli.checkpoints import load_pipeline
from sdcli.checkpoints.adapters import put_lora, put_word
from sdcli.checkpoints.embeddings import read_word
from sdcli.checkpoints.folder import ON_CPU
from sdcli.checkpoints.lora import Change, layers_of, simo_layers
from sdcli.errors import SdcliError
from sdcli.registry import find_model
from sdcli.run_settings import RunSettings
from sdcli.settings import GenerateSettings
from sdcli.workbench import Workbench

FAMILIES = ("sd1", "sd2", "sdxl")
PROMPT = "a photo of a red cat"


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return {name: write_folder(name, tmp_path_factory.mktemp("lora") / name) for name in FAMILIES}


def fresh_stock(folder: Path):
    """Stock's pipeline with networks of its own, which a test may put things onto."""
    kind = StableDiffusionXLPipeline if "xl" in folder.name else StableDiffusionPipeline
    more = {} if "xl" in folder.name else {"safety_checker": None}
    return kind.from_pretrained(folder, **more)


LAYOUTS = {"peft": as_peft, "kohya": as_kohya, "old diffusers": as_old_diffusers}


@pytest.mark.parity
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_lora_makes_stocks_picture(name, layout, folders, tmp_path):
    """On the UNet and on the text encoders, at 0.7 of its strength."""
    reference = fresh_stock(folders[name])
    tensors = {key: tensor.contiguous() for key, tensor in LAYOUTS[layout](matrices(reference), reference).items()}
    save_file(tensors, tmp_path / "lora.safetensors")
    pipeline = load_pipeline(find_model(str(folders[name])), ON_CPU)
    plain = ours(pipeline)
    reference.load_lora_weights(tmp_path / "lora.safetensors", adapter_name="it")
    reference.set_adapters(["it"], [0.7])
    undo = put_lora(pipeline, tmp_path / "lora.safetensors", 0.7)
    made = ours(pipeline)
    assert numpy.abs(made - plain).max() > 0.05
    assert numpy.abs(of_stock(reference) - made).max() <= ALMOST_EQUAL
    undo()
    assert numpy.array_equal(ours(pipeline), plain)


@pytest.mark.parity
def test_locon_and_several_at_once(folders, tmp_path):
    """Convolutions too; two LoRAs add up, in any order."""
    reference = fresh_stock(folders["sd1"])
    made = matrices(reference, convolutions=True)
    some = {layer: pair for layer, pair in made.items() if "text" not in layer}
    save_file(as_kohya(some, reference), tmp_path / "locon.safetensors")
    save_file(as_peft(matrices(reference), reference), tmp_path / "plain.safetensors")
    reference.load_lora_weights(tmp_path / "locon.safetensors", adapter_name="one")
    reference.load_lora_weights(tmp_path / "plain.safetensors", adapter_name="two")
    reference.set_adapters(["one", "two"], [0.5, 0.25])
    expected = of_stock(reference)
    for order in (("locon", 0.5), ("plain", 0.25)), (("plain", 0.25), ("locon", 0.5)):
        pipeline = load_pipeline(find_model(str(folders["sd1"])), ON_CPU)
        for file, share in order:
            put_lora(pipeline, tmp_path / f"{file}.safetensors", share)
        assert numpy.abs(expected - ours(pipeline)).max() <= ALMOST_EQUAL


@pytest.mark.parametrize("order", [("attn1", "ff", "attn2"), ("attn1", "attn2", "ff")])
def test_cloneofsimos_numbers_mean_the_layers_that_they_meant(order, folders, tmp_path):
    """The same matrices by number, in the order of either version of diffusers, and by name: the same picture."""
    reference = fresh_stock(folders["sd1"])
    pipeline = load_pipeline(find_model(str(folders["sd1"])), ON_CPU)
    generator = torch.Generator().manual_seed(0)
    modules = layers_of({"unet": reference.unet})
    numbered, named = {}, {}
    for number, layer in enumerate(simo_layers("unet", modules, order)):
        rows, columns = modules[layer].weight.shape
        up, down = torch.randn(rows, 2, generator=generator), torch.randn(2, columns, generator=generator) / columns
        numbered |= {f"unet:{number}:up": up, f"unet:{number}:down": down}
        named |= {f"{layer}.lora_B.weight": up, f"{layer}.lora_A.weight": down}
    save_file(numbered, tmp_path / "simo.safetensors", metadata={"unet": json.dumps(["CrossAttention"])})
    save_file(named, tmp_path / "named.safetensors")
    pictures = []
    for file in ("simo", "named"):
        undo = put_lora(pipeline, tmp_path / f"{file}.safetensors")
        pictures.append(ours(pipeline))
        undo()
    assert numpy.array_equal(*pictures)


def test_a_lora_of_another_family_says_how_much_of_it_fits(folders, tmp_path):
    reference = fresh_stock(folders["sdxl"])
    save_file(as_peft(matrices(reference), reference), tmp_path / "xl.safetensors")
    pipeline = load_pipeline(find_model(str(folders["sd1"])), ON_CPU)
    plain = ours(pipeline)
    with pytest.raises(SdcliError, match=r"xl.safetensors fits \d+ of \d+ layers: ") as caught:
        put_lora(pipeline, tmp_path / "xl.safetensors")
    assert caught.value.hint.startswith("it was trained for another model")
    assert numpy.array_equal(ours(pipeline), plain)


STRANGE = {
    "lora_unet_nowhere.lora_up.weight": torch.zeros(2, 2),
    "lora_unet_nowhere.lora_down.weight": torch.zeros(2, 2),
    "lora_unet_mid_block_resnets_0_conv1.hada_w1_a": torch.zeros(2, 2),
    "lora_unet_mid_block_resnets_0_conv1.hada_w1_b": torch.zeros(2, 2),
}


@pytest.mark.parametrize("layout", ["peft", "kohya"])
def test_what_fits_of_a_lora_is_taken_where_that_is_wanted(layout, folders, tmp_path):
    """The layers that fit make the picture that they make alone; the others are counted."""
    reference = fresh_stock(folders["sd1"])
    fitting = LAYOUTS[layout](matrices(reference), reference)
    save_file(fitting, tmp_path / "fitting.safetensors")
    save_file(fitting | STRANGE, tmp_path / "mixed.safetensors")
    save_file(STRANGE, tmp_path / "strange.safetensors")
    pipeline = load_pipeline(find_model(str(folders["sd1"])), ON_CPU)
    undo = put_lora(pipeline, tmp_path / "fitting.safetensors", lenient=True)
    expected = ours(pipeline)
    assert undo.left_out == ""
    undo()
    with pytest.raises(SdcliError, match="has keys of no LoRA") as caught:
        put_lora(pipeline, tmp_path / "mixed.safetensors")
    assert "--lenient" in caught.value.hint
    undo = put_lora(pipeline, tmp_path / "mixed.safetensors", lenient=True)
    count = len(matrices(reference))
    assert (
        f"mixed.safetensors: 2 of {count + 2} layers were left out: the model has no lora_unet_nowhere" in undo.left_out
    )
    assert numpy.array_equal(ours(pipeline), expected)
    with pytest.raises(SdcliError, match="fits 0 of 2 layers") as caught:
        put_lora(pipeline, tmp_path / "strange.safetensors", lenient=True)
    assert "--lenient" not in caught.value.hint


def test_each_lora_is_warned_of_once(folders, tmp_path):
    """However often it is put onto the model and taken off again."""
    reference = fresh_stock(folders["sd1"])
    file = tmp_path / "mixed.safetensors"
    save_file(as_kohya(matrices(reference), reference) | STRANGE, file)
    bench = Workbench(find_model(str(folders["sd1"])), ON_CPU, RunSettings(lenient=True))
    common = {"prompt": PROMPT, "model": "sd1", "seed": 1, "width": 32, "height": 32}
    plain = GenerateSettings(**common, num_inference_steps=3, guidance_scale=5.0)
    told = []
    for settings in (replace(plain, lora=(str(file),)), plain, replace(plain, lora=(str(file),))):
        bench.ready(settings)
        told += bench.warnings()
    assert len(told) == 1 and "mixed.safetensors: 2 of" in told[0]


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"weight": torch.zeros(2, 2)}, "is no LoRA: it has weight"),
        ({"lora_unet_x.hada_w1_a": torch.zeros(2, 2)}, "is no LoRA"),
        ({"lora_unet_x.lora_up.weight": torch.zeros(2, 2), "lora_unet_x.hada": torch.zeros(1)}, "keys of no LoRA"),
    ],
)
def test_what_is_no_lora_is_refused(tensors, message, folders, tmp_path):
    save_file(tensors, tmp_path / "it.safetensors")
    pipeline = load_pipeline(find_model(str(folders["sd1"])), ON_CPU)
    with pytest.raises(SdcliError, match=message):
        put_lora(pipeline, tmp_path / "it.safetensors")


def word_files(folder: Path) -> dict[str, Path]:
    """The same two vectors in each layout of one text encoder."""
    vectors = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(0))
    save_file({"<thing>": vectors}, folder / "learned_embeds.safetensors")
    save_file({"emb_params": vectors}, folder / "<thing>.safetensors")
    about = {"string_to_token": {"*": 265}, "string_to_param": {"*": vectors}, "name": "<thing>", "step": 10}
    torch.save(about, folder / "a1111.pt")
    torch.save({"<thing>": vectors}, folder / "learned_embeds.bin")
    return {path.suffix + path.stem[:2]: path for path in folder.iterdir()}


@pytest.mark.parity
def test_a_word_of_several_vectors_makes_stocks_picture(folders, tmp_path):
    """In every layout, called as the file says or as it is called."""
    files = word_files(tmp_path)
    reference = fresh_stock(folders["sd1"])
    reference.load_textual_inversion(tmp_path / "learned_embeds.safetensors")
    reference.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 3, "guidance_scale": 5.0, "output_type": "np", "height": 32, "width": 32}
    prompt = "a photo of <thing>"
    drawn = [torch.Generator().manual_seed(1)]
    expected = reference(prompt, negative_prompt=NEGATIVE, generator=drawn, **options).images
    for path in files.values():
        pipeline = load_pipeline(find_model(str(folders["sd1"])), ON_CPU)
        put_word(pipeline, read_word(path, allow_pickle=True))
        made = pipeline(prompt, NEGATIVE, generator=[torch.Generator().manual_seed(1)], **options).images
        assert numpy.abs(expected - made).max() <= ALMOST_EQUAL, path


@pytest.mark.parity
def test_a_word_for_two_text_encoders_makes_stocks_picture(folders, tmp_path):
    vectors = torch.randn(2, 3, WIDTH, generator=torch.Generator().manual_seed(0))
    save_file({"clip_l": vectors[0].clone(), "clip_g": vectors[1].clone()}, tmp_path / "<thing>.safetensors")
    reference = fresh_stock(folders["sdxl"])
    for part, key in (("text_encoder", 0), ("text_encoder_2", 1)):
        tokenizer = reference.tokenizer_2 if key else reference.tokenizer
        reference.load_textual_inversion(
            {"<thing>": vectors[key]}, token="<thing>", text_encoder=getattr(reference, part), tokenizer=tokenizer
        )
    pipeline = load_pipeline(find_model(str(folders["sdxl"])), ON_CPU)
    put_word(pipeline, read_word(tmp_path / "<thing>.safetensors"))
    options = {"num_inference_steps": 3, "guidance_scale": 5.0, "output_type": "np", "height": 32, "width": 32}
    reference.set_progress_bar_config(disable=True)
    drawn = {"generator": [torch.Generator().manual_seed(1)]}
    expected = reference("a photo of <thing>", negative_prompt=NEGATIVE, **drawn, **options).images
    drawn = {"generator": [torch.Generator().manual_seed(1)]}
    made = pipeline("a photo of <thing>", NEGATIVE, **drawn, **options).images
    assert numpy.abs(expected - made).max() <= ALMOST_EQUAL


def test_pickles_need_to_be_allowed_and_words_to_fit(folders, tmp_path):
    files = word_files(tmp_path)
    with pytest.raises(SdcliError, match="is a pickle") as caught:
        read_word(files[".pta1"])
    assert "--allow-pickle" in caught.value.hint
    (tmp_path / "evil.pt").write_bytes(b"\x80\x02cos\nsystem\nU\x02lsq\x00\x85q\x01R.")
    with pytest.raises(SdcliError, match="cannot be read"):
        read_word(tmp_path / "evil.pt", allow_pickle=True)
    with pytest.raises(SdcliError, match="vectors for text_encoder, the model has text_encoder, text_encoder_2"):
        put_word(load_pipeline(find_model(str(folders["sdxl"])), ON_CPU), read_word(files[".safetensorsle"]))
    save_file({"<thing>": torch.zeros(1, WIDTH + 1)}, tmp_path / "wide.safetensors")
    with pytest.raises(SdcliError, match=f"is {WIDTH + 1} numbers wide, the text encoder's {WIDTH}"):
        put_word(load_pipeline(find_model(str(folders["sd1"])), ON_CPU), read_word(tmp_path / "wide.safetensors"))
    save_file({"a": torch.zeros(1, 2), "b": torch.zeros(1, 2)}, tmp_path / "two.safetensors")
    with pytest.raises(SdcliError, match="is no embedding: it has a and 1 more"):
        read_word(tmp_path / "two.safetensors")


@pytest.mark.parity
def test_the_decomposed_convolutions_of_locon_are_three_convolutions():
    """down, mid and up one after the other do what their product does (LyCORIS calls it Tucker decomposition)."""
    generator = torch.Generator().manual_seed(0)
    down, mid = torch.randn(3, 5, 1, 1, generator=generator), torch.randn(3, 3, 3, 3, generator=generator)
    up, picture = torch.randn(4, 3, 1, 1, generator=generator), torch.randn(1, 5, 8, 8, generator=generator)
    convolve = torch.nn.functional.conv2d
    expected = convolve(convolve(convolve(picture, down), mid, padding=1), up)
    difference = Change(down, up, mid).difference(torch.zeros(4, 5, 3, 3))
    torch.testing.assert_close(convolve(picture, difference, padding=1), expected, atol=1e-3, rtol=1e-4)


@pytest.mark.parity
def test_dora_makes_stocks_picture(folders, tmp_path):
    """Weights whose rows are brought to learned lengths, as peft computes them."""
    reference = fresh_stock(folders["sd1"])
    made = {layer: pair for layer, pair in matrices(reference).items() if layer.startswith("unet.")}
    tensors = as_peft(made, reference)
    for layer in made:
        weight = reference.unet.get_submodule(layer.removeprefix("unet.")).weight
        tensors[f"{layer}.lora_magnitude_vector"] = 1.2 * weight.detach().norm(dim=1)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, tmp_path / "dora.safetensors")
    reference.load_lora_weights(tmp_path / "dora.safetensors")
    pipeline = load_pipeline(find_model(str(folders["sd1"])), ON_CPU)
    put_lora(pipeline, tmp_path / "dora.safetensors")
    assert numpy.abs(of_stock(reference) - ours(pipeline)).max() <= ALMOST_EQUAL
