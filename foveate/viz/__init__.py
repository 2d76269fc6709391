"""Pictures of what a plan kept and of where a model looks. They read traces and studies alone, so they serve every plan."""
