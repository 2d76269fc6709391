"""Quality of answers under plans, on data that users bring."""
