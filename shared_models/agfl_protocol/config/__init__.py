"""What a run's YAML file may say."""
