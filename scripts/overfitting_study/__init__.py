"""Parts of scripts/verdict_study: its design, its trainings, its records."""
