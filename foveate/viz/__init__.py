"""Pictures of what a plan did. They read the trace and nothing else, so they serve every plan."""
