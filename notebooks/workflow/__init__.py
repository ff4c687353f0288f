"""From a preset to the report: notebooks as doit tasks, of which only the stale ones run."""
