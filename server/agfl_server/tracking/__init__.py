"""Where a run's metrics go beside its folder: TensorBoard, MLflow, Weights & Biases."""
