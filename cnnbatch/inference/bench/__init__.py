"""Measures a map job: what it would cost, what each stage costs, and what holds it up."""
