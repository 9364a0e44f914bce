"""Shelf of tuners: small trained changes to a frozen backbone."""

from m6rec.registry import Registry

TUNERS = Registry(
    "tuner",
    {
        "none": "m6rec.tuners.none:NoTuner",
        "full": "m6rec.tuners.full:FullTuner",
        "lora": "m6rec.tuners.lora:LoraTuner",
        "prompt": "m6rec.tuners.prompt:PromptTuner",
        "prefix": "m6rec.tuners.prefix:PrefixTuner",
        "p-tuning": "m6rec.tuners.p_tuning:PTuningTuner",
        "ia3": "m6rec.tuners.ia3:IA3Tuner",
        "iak": "m6rec.tuners.iak:IAKTuner",
        "ln-tuning": "m6rec.tuners.ln_tuning:LNTuningTuner",
        "bitfit": "m6rec.tuners.bitfit:BitFitTuner",
        "option": "m6rec.tuners.option:OptionTuner",
        "option-adapter": "m6rec.tuners.option_adapter:OptionAdapterTuner",
        "peterrec": "m6rec.tuners.peterrec:PeterRecTuner",
        "conditioned": "m6rec.tuners.conditioned:ConditionedTuner",
    },
    group="m6rec.tuners",
)
