"""Data that every other room speaks in: sites, budgets, plans, layouts, views, selections, traces.

Only torch and the standard library are used here. Nothing in this folder knows a method, a model family or transformers.
"""
