"""Pretrained Hugging Face models from a local folder, trained whole or through an adapter; the extra `huggingface`."""
