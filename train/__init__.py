"""Training scripts: five plain functions and a frozen dataclass each."""
