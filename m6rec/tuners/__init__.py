"""Shelf of tuners: small trained changes to a frozen backbone."""

from m6rec.registry import Registry

TUNERS = Registry(
    "tuner",
    {
        "none": "m6rec.tuners.none:NoTuner",
        "full": "m6rec.tuners.full:FullTuner",
        "lora": "m6rec.tuners.peft:LoraTuner",
        "prompt": "m6rec.tuners.peft:PromptTuner",
        "prefix": "m6rec.tuners.peft:PrefixTuner",
        "p-tuning": "m6rec.tuners.peft:PTuningTuner",
        "ia3": "m6rec.tuners.peft:IA3Tuner",
        "iak": "m6rec.tuners.iak:IAKTuner",
    },
    group="m6rec.tuners",
)
