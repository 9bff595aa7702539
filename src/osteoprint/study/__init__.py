"""The experiments: tables and figures, and stricter ones than the paper had."""
