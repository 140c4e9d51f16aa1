"""Writes a trained checkpoint as DeepSeek stores V3: FP8 blocks, shards with an index, config, tokenizer.

    export.py --run FOLDER --to deploy/demo-model            the FP8 checkpoint
    export.py --dequantise deploy/demo-model --to FOLDER     the same weights in float32, for transformers
"""

import argparse
import json
import os
import shutil

import torch
from safetensors.torch import load_file, save_file

from model import CONFIG, Config, Model
from quantise import dequantise, is_quantised, quantise
from tokenizer import save_tokenizer_config

SHARDS = 2


def stored_name(name):
    """model.py's name to the checkpoint's; the MTP layer follows the last decoder layer."""
    if name == "lm_head.weight":
        return name
    mtp = f"layers.{CONFIG['num_hidden_layers']}."
    return "model." + name.replace("mtp.shared_head_norm", mtp + "shared_head.norm").replace("mtp.", mtp)


def stored_tensors(state):
    """The checkpoint's tensors in order of use: {name: tensor}."""
    result = {}

    def put(name, value, quantised):
        if quantised:
            result[name], result[name + "_scale_inv"] = quantise(value)
        elif "correction_bias" in name:
            result[name] = value.float()
        else:
            result[name] = value.bfloat16()

    for name, value in state.items():
        base = stored_name(name)
        if "experts_gate_up" in name:
            base = base.replace("experts_gate_up", "experts")
            for i, expert in enumerate(value):
                for part, half in zip(("gate_proj", "up_proj"), expert.chunk(2)):
                    put(f"{base}.{i}.{part}.weight", half.contiguous(), True)
        elif "experts_down" in name:
            base = base.replace("experts_down", "experts")
            for i, expert in enumerate(value):
                put(f"{base}.{i}.down_proj.weight", expert.contiguous(), True)
        else:
            put(base, value, is_quantised(name))
    # V3 repeats the shared embedding and head in its MTP layer.
    mtp = f"model.layers.{CONFIG['num_hidden_layers']}."
    result[mtp + "embed_tokens.weight"] = result["model.embed_tokens.weight"].clone()
    result[mtp + "shared_head.head.weight"] = result["lm_head.weight"].clone()
    return result


def save_shards(tensors, folder, shards):
    """Fills shards one after the other to about equal size."""
    sizes = {name: t.numel() * t.element_size() for name, t in tensors.items()}
    total, done, parts, weight_map = sum(sizes.values()), 0, [{} for _ in range(shards)], {}
    for name, tensor in tensors.items():
        index = min(shards - 1, done * shards // total)
        parts[index][name] = tensor
        weight_map[name] = f"model-{index + 1:05d}-of-{shards:05d}.safetensors"
        done += sizes[name]
    for index, part in enumerate(parts):
        path = os.path.join(folder, f"model-{index + 1:05d}-of-{shards:05d}.safetensors")
        save_file(part, path, {"format": "pt"})
        os.chmod(path, 0o644)  # save_file leaves it readable by its owner only
    write_json(folder, "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


def write_json(folder, name, value):
    with open(os.path.join(folder, name), "w", encoding="utf-8") as out:
        json.dump(value, out, indent=2)
        out.write("\n")


def load_stored(folder):
    """All tensors of a checkpoint folder, FP8 blocks resolved to float32."""
    with open(os.path.join(folder, "model.safetensors.index.json"), encoding="utf-8") as file:
        names = sorted(set(json.load(file)["weight_map"].values()))
    tensors = {}
    for name in names:
        tensors |= load_file(os.path.join(folder, name))
    return {
        name: dequantise(t, tensors[name + "_scale_inv"]) if name + "_scale_inv" in tensors else t.float()
        for name, t in tensors.items()
        if not name.endswith("_scale_inv")
    }


def load_model(folder):
    """model.py's Model with the weights of a checkpoint folder."""
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
        model = Model(Config(json.load(file)))
    tensors, state = load_stored(folder), {}
    for name, value in model.state_dict().items():
        base = stored_name(name)
        if "experts_" in name:
            parts = ("gate_proj", "up_proj") if "gate_up" in name else ("down_proj",)
            base = base.rsplit("experts_", 1)[0] + "experts"
            state[name] = torch.stack(
                [torch.cat([tensors[f"{base}.{i}.{part}.weight"] for part in parts]) for i in range(len(value))]
            )
        else:
            state[name] = tensors[base]
    model.load_state_dict(state)
    return model.eval()


def export(run, folder):
    os.makedirs(folder, exist_ok=True)
    state = torch.load(os.path.join(run, "checkpoint.pt"), weights_only=True)
    save_shards(stored_tensors(state), folder, SHARDS)
    write_json(folder, "config.json", CONFIG)
    write_json(folder, "generation_config.json", {
        "_from_model_config": True, "bos_token_id": CONFIG["bos_token_id"], "do_sample": False,
        "eos_token_id": CONFIG["eos_token_id"],
    })
    shutil.copyfile(os.path.join(run, "tokenizer.json"), os.path.join(folder, "tokenizer.json"))
    save_tokenizer_config(folder, CONFIG["max_position_embeddings"])


def export_dequantised(source, folder):
    os.makedirs(folder, exist_ok=True)
    save_shards(load_stored(source), folder, 1)
    config = {k: v for k, v in CONFIG.items() if k != "quantization_config"} | {"torch_dtype": "float32"}
    write_json(folder, "config.json", config)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copyfile(os.path.join(source, name), os.path.join(folder, name))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", help="folder that train.py wrote")
    parser.add_argument("--dequantise", help="FP8 checkpoint folder to expand to float32")
    parser.add_argument("--to", required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.dequantise:
        export_dequantised(args.dequantise, args.to)
    else:
        export(args.run, args.to)


if __name__ == "__main__":
    main()
