"""LoRA (https://arxiv.org/abs/2106.09685) on a GPT-2: causal language modelling with a few trained numbers beside frozen weights.

By default the model is the small, freshly drawn GPT-2 of this repository's tests, and tokens are bytes; the text is
scikit-learn's descriptions of its data sets, one of which is held out. A trained GPT-2 comes with its tokenizer, and usually with
caches of keys and values among its inputs, which stay empty here:

usage: python examples/gpt2_lora.py [--model gpt2.onnx --tokenizer tokenizer.json] [--layers '*.c_attn|*.c_proj'] [--steps N]
"""

import argparse
import pathlib
import sys
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import onnx
import optax
import sklearn.datasets
from jaxtyping import Array, Float, Int

import onnxeqx

REPOSITORY = pathlib.Path(__file__).parents[1]
LENGTH, BATCH = 64, 16


def small_gpt2() -> onnx.ModelProto:
    sys.path.append(str(REPOSITORY))
    from tests.sample_models import sample_model

    return sample_model("gpt2_small_past.ts")


def texts() -> list[str]:
    names = ("digits", "diabetes", "iris", "linnerud", "breast_cancer", "wine")
    return [getattr(sklearn.datasets, f"load_{name}")().DESCR for name in names]


def windows(text: str, tokenizer: pathlib.Path | None) -> Int[np.ndarray, "windows length"]:
    """The tokens of a text, in windows that follow each other."""
    if tokenizer is None:
        ids = np.frombuffer(text.encode(), np.uint8)
    else:
        import tokenizers  # pip install tokenizers

        ids = np.array(tokenizers.Tokenizer.from_file(str(tokenizer)).encode(text).ids)
    return ids[: len(ids) // LENGTH * LENGTH].reshape(-1, LENGTH).astype(np.int32)


def inputs(graph: onnx.GraphProto, tokens: Int[Array, "batch length"]) -> dict[str, Array]:
    """What a GPT-2 of this signature is given for these tokens; caches are empty."""
    known = {
        "input_ids": tokens,
        "attention_mask": jnp.ones_like(tokens),
        "position_ids": jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape),
    }

    def empty_cache(value: onnx.ValueInfoProto) -> Array:
        _, *sizes = (dim.dim_value for dim in value.type.tensor_type.shape.dim)  # 0 where the size is free: the past
        return jnp.zeros((len(tokens), *sizes))

    stored = {tensor.name for tensor in graph.initializer}
    values = [value for value in graph.input if value.name not in stored]
    return {value.name: known[value.name] if value.name in known else empty_cache(value) for value in values}


def logits(model: Any, graph: onnx.GraphProto, tokens: Int[Array, "batch length"]) -> Float[Array, "batch length ids"]:
    outputs = model(**inputs(graph, tokens))
    return outputs[0] if isinstance(outputs, tuple) else outputs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, help="a GPT-2 whose first output is its logits")
    parser.add_argument("--tokenizer", type=pathlib.Path, help="its tokenizer.json")
    parser.add_argument("--layers", default="*", help="key paths of the layers to adapt; by default all linear ones")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs/gpt2_lora"))
    parser.add_argument("--short", action="store_true", help="fewer steps, for a quick look")
    options = parser.parse_args()
    if (options.model is None) != (options.tokenizer is None):
        parser.error("a model needs its own tokenizer, so give both --model and --tokenizer or none")

    proto = onnx.load(options.model, load_external_data=False) if options.model else small_gpt2()
    graph = proto.graph
    base = onnxeqx.load(options.model) if options.model else onnxeqx.load_model(proto)
    model = onnxeqx.lora(base, options.layers, rank=options.rank, key=jax.random.key(0))
    trainable, frozen = eqx.partition(model, onnxeqx.parameters(model, trainable="*.lora_*"))
    count, total = (sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (trainable, base))
    print(f"{count:,} trained numbers beside {total:,} frozen ones.")

    *known, unknown = (windows(text, options.tokenizer) for text in texts())
    training = np.concatenate(known)
    steps = 60 if options.short else options.steps
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, steps))

    def loss(model: Any, tokens: Int[Array, "batch length"]) -> Array:
        predicted = logits(model, graph, tokens)[:, :-1]
        return optax.softmax_cross_entropy_with_integer_labels(predicted, tokens[:, 1:]).mean()

    @eqx.filter_jit
    def step(trainable, frozen, state, tokens):
        grads = eqx.filter_grad(lambda part: loss(eqx.combine(part, frozen), tokens))(trainable)
        updates, state = optimizer.update(grads, state)
        return eqx.apply_updates(trainable, updates), state

    held_out_loss = eqx.filter_jit(lambda model: loss(model, jnp.asarray(unknown)))
    before = held_out_loss(model)
    state, random = optimizer.init(trainable), np.random.default_rng(0)
    for _ in range(steps):
        trainable, state = step(trainable, frozen, state, training[random.integers(len(training), size=BATCH)])
    model = eqx.combine(trainable, frozen)
    after = held_out_loss(model)
    print(f"Loss on the held-out text: {before:.3f} before, {after:.3f} after {steps} steps.")

    options.output.mkdir(parents=True, exist_ok=True)
    onnxeqx.save_lora(model, options.output / "lora.safetensors")
    again = onnxeqx.load_lora(base, options.output / "lora.safetensors")
    merged = onnxeqx.merge_lora(again)
    np.testing.assert_allclose(held_out_loss(merged), after, rtol=1e-4)
    onnxeqx.save_onnx(merged, options.output / "merged.onnx")
    sizes = [(options.output / name).stat().st_size for name in ("lora.safetensors", "merged.onnx")]
    print(
        f"Saved: the updates ({sizes[0]:,} bytes), and merged into the weights, for ONNX Runtime ({sizes[1]:,} bytes)."
    )


if __name__ == "__main__":
    main()
