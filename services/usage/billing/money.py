"""Amounts of a currency. Pure."""

from decimal import ROUND_HALF_UP, Decimal

from services.usage.pricing.rate import EXACT

_MINOR_DIGITS = {
    **dict.fromkeys(("BIF", "CLP", "DJF", "GNF", "ISK", "JPY", "KMF", "KRW", "PYG", "RWF", "UGX", "UYI"), 0),
    **dict.fromkeys(("VND", "VUV", "XAF", "XOF", "XPF"), 0),
    **dict.fromkeys(("BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"), 3),
    **dict.fromkeys(("CLF", "UYW"), 4),
}
"""Decimals of the smallest unit, where they are not two (ISO 4217, list one)."""

_ROUNDING = EXACT.copy()
_ROUNDING.rounding = ROUND_HALF_UP
_ROUNDING.clear_traps()


def rounded(amount: Decimal, currency: str) -> Decimal:
    """To the smallest unit of the currency, a half away from zero: so what is taken back rounds as what was taken."""
    return _ROUNDING.quantize(amount, Decimal(1).scaleb(-_MINOR_DIGITS.get(currency, 2)))
