"""Fine-tuning with forgetting: learn the tokens that help, forget the ones that mislead (Taheri et al., TMLR 2026)."""

__version__ = "0.1.0"
