"""How the files of a trained model are called, and of a run beside it."""

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.yaml"
MODEL_FOLDER = "model"
METRICS_FILE = "metrics.jsonl"  # of a run, beside the model's folder
REPORT_FILE = "report.html"  # of a run
