"""Expressions and templates: what stands between `${` and `}`, and the values around it.

    compile("steps.weather.temp > 20").evaluate(scope)
    template({"text": "It is ${steps.weather.temp} °C"}).render(scope)
    condition("steps.weather.alert ?? false").holds(scope)

A bare path is looked up in Python; everything else is CEL. Where CEL's grammar ends, this adds
`a ?? b` (b when a is missing or null; it binds closer than a comparison) and `now+1h30m`. Nothing
here waits or touches anything outside, and nothing takes 100 ms: what could is refused, see `cost`.
"""

from __future__ import annotations

from .engine import ROOTS, Expression, compile
from .problems import ExpressionError, TemplateErrors
from .templates import Condition, Template, condition, template

__all__ = [
    "ROOTS",
    "Condition",
    "Expression",
    "ExpressionError",
    "Template",
    "TemplateErrors",
    "compile",
    "condition",
    "template",
]
