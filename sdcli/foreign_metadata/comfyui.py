"""What ComfyUI writes: `prompt`, the graph that was run, and `workflow`, the same as its editor shows it.

The first pass of sampling is followed to what it is made from. Nodes that have no counterpart are kept by their ids.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sdcli.foreign_metadata.comfyui_graph import VALUES, Graph, Node
from sdcli.foreign_metadata.translation import ForeignMetadata, Translation
from sdcli.untrusted_json import object_in

MAKER = "ComfyUI"
SAMPLERS = ("KSampler", "KSamplerAdvanced", "SamplerCustom", "SamplerCustomAdvanced")
WORDS = ("text", "prompt", "text_g", "text_l", "clip_l", "t5xxl")  # inputs of nodes that encode text
CONDITIONING = ("conditioning", "conditioning_1", "conditioning_2", "conditioning_to", "conditioning_from")
MODELS = {"CheckpointLoaderSimple": "ckpt_name", "CheckpointLoader": "ckpt_name", "UNETLoader": "unet_name"}
LORAS = ("LoraLoader", "LoraLoaderModelOnly")
SQUARE = re.compile(r"(?<!\\)[\[\]]")  # brackets that mean nothing there, and something here
SIGMAS = {"KarrasScheduler": "karras", "ExponentialScheduler": "exponential"}


def read(texts: Mapping[str, str]) -> ForeignMetadata | None:
    """Settings of a picture by ComfyUI; None where it is by another program."""
    content, workflow = object_in(texts.get("prompt")), object_in(texts.get("workflow"))
    graph = Graph(content or {})
    if not graph.nodes and not (workflow and isinstance(workflow.get("nodes"), list)):
        return None
    reading = Reading(graph)
    reading.follow()
    translation = reading.translation
    for node in graph.nodes.values():
        left = {name: value for name, value in node.values.items() if (node.name, name) not in reading.used}
        if left:
            translation.keep(node.title, left)
    if content is None:  # the values of a workflow have no names, so none is guessed
        translation.keep("prompt", texts.get("prompt"))
    else:
        translation.keep_rest(content, graph.nodes)
    translation.keep("workflow", workflow or texts.get("workflow"))
    return translation.finish(MAKER)


class Reading:
    """One graph on its way into settings.

    Args:
        graph: what was run.
    """

    def __init__(self, graph: Graph):
        self.graph = graph
        self.translation = Translation()
        self.used: set[tuple[str, str]] = set()  # ids and inputs of nodes whose values were taken

    def take(self, name: str, node: Node, theirs: str) -> None:
        """Take an input of a node, wherever its value comes from."""
        value = self.graph.value(node, theirs)
        if value is not None and self.translation.accept(name, value):
            self.use(node, theirs)

    def use(self, node: Node, theirs: str) -> None:
        """Note that an input was taken, and the node that holds its value."""
        self.used.add((node.name, theirs))
        link = node.inputs.get(theirs)
        for source in self.graph.upstream(link, inputs=(theirs, *VALUES)):
            self.used |= {(source.name, name) for name in source.inputs}

    def follow(self) -> None:
        """Take all that the first pass of sampling was made from."""
        sampler = first_sampler(self.graph)
        if sampler is None:
            return
        link = sampler.inputs.get
        guider = self.graph.at(link("guider")) or sampler
        noise = self.graph.at(link("noise")) or sampler
        sigmas = self.graph.at(link("sigmas")) or sampler
        self.take("seed", noise, "seed" if "seed" in noise.inputs else "noise_seed")
        self.take("num_inference_steps", sigmas, "steps")
        self.take("guidance_scale", guider, "cfg")
        self.take_sampler(self.graph.at(link("sampler")) or sampler, sigmas)
        positive = guider.inputs.get("positive", guider.inputs.get("conditioning"))
        self.take_text("prompt", positive, "positive")
        self.take_text("negative_prompt", guider.inputs.get("negative"), "negative")
        self.take_latents(sampler, sigmas)
        self.take_model(guider.inputs.get("model", link("model")))

    def take_sampler(self, chosen: Node, sigmas: Node) -> None:
        """Take the names of sampler and schedule."""
        sampler = self.graph.value(chosen, "sampler_name")
        schedule = SIGMAS.get(sigmas.kind, self.graph.value(sigmas, "scheduler"))
        trial = Translation()
        trial.take_sampler(sampler, schedule, ("sampler", "schedule"))
        self.translation.settings |= trial.settings
        if "sampler" in trial.settings:
            self.use(chosen, "sampler_name")
            if "schedule" not in trial.others:
                self.use(sigmas, "scheduler")

    def take_text(self, name: str, link: Any, role: str) -> None:
        """Take the one text that conditions a sampler; of several that are combined there is no like here."""
        nodes = list(self.graph.upstream(link, inputs=(role, *CONDITIONING)))
        if any(node.kind == "ConditioningZeroOut" for node in nodes):
            self.translation.accept(name, "")
            return
        encoders = [node for node in nodes if "TextEncode" in node.kind]
        found = [(node, each) for node in encoders for each in WORDS if each in node.inputs]
        said = {text for node, each in found if isinstance(text := self.graph.value(node, each), str)}
        if len(said) != 1:
            return
        if self.translation.accept(name, SQUARE.sub(r"\\\g<0>", said.pop())):
            for node, each in found:
                self.use(node, each)
            self.take_clip_skip(encoders[0].inputs.get("clip"))

    def take_clip_skip(self, link: Any) -> None:
        """Take the layer of the text tower to stop at, where -1 is the last."""
        for node in self.graph.upstream(link, inputs=("clip",)):
            stop = self.graph.value(node, "stop_at_clip_layer")
            if node.kind == "CLIPSetLastLayer" and isinstance(stop, int):
                if self.translation.accept("clip_skip", -stop - 1):
                    self.use(node, "stop_at_clip_layer")
                return

    def take_latents(self, sampler: Node, sigmas: Node) -> None:
        """Take the size of empty latents; other latents are made from a picture, and then denoise is our strength."""
        link = sampler.inputs.get("latent_image")
        for node in self.graph.upstream(link, inputs=("samples", "latent", "latent_image")):
            if node.kind.startswith("Empty"):
                self.take("width", node, "width")
                self.take("height", node, "height")
                if self.graph.value(sigmas, "denoise") == 1:
                    self.use(sigmas, "denoise")
                if self.graph.value(node, "batch_size") == 1:
                    self.use(node, "batch_size")
                return
        if "denoise" in sigmas.inputs:
            self.take("strength", sigmas, "denoise")

    def take_model(self, link: Any) -> None:
        """Take the model and the LoRAs between it and the sampler, the first that is put onto it first."""
        loras: list[tuple[Node, str]] = []
        for node in self.graph.upstream(link, inputs=("model",)):
            name, weight = self.graph.value(node, "lora_name"), self.graph.value(node, "strength_model")
            if node.kind in LORAS and isinstance(name, str):
                loras.insert(0, (node, f"{name}:{weight}"))
            elif node.kind == "RescaleCFG":
                self.take("guidance_rescale", node, "multiplier")
            elif node.kind in MODELS:
                self.take("model", node, MODELS[node.kind])
        if loras and self.translation.accept("lora", [each for _, each in loras]):
            for node, _ in loras:
                self.use(node, "lora_name")
                self.use(node, "strength_model")
                if node.inputs.get("strength_clip") == node.inputs.get("strength_model"):
                    self.use(node, "strength_clip")


def first_sampler(graph: Graph) -> Node | None:
    """The sampler that no other one comes before, of those that a saved picture is made by, if any is saved."""
    samplers = [node for node in graph.nodes.values() if node.kind in SAMPLERS]
    savers = [node for node in graph.nodes.values() if node.kind.startswith(("Save", "PreviewImage"))]
    saved = {each.name for each in graph.upstream(*([node.name, 0] for node in savers))}
    samplers = [node for node in samplers if node.name in saved] or samplers
    for node in samplers:
        before = graph.upstream(node.inputs.get("latent_image"))
        if not any(each.kind in SAMPLERS for each in before):
            return node
    return samplers[0] if samplers else None
