"""The least that a config must say."""

GOOD = """
model: {pretrained: demo/tiny-sdxl}
data: {root: demo/people}
train: {output_dir: outputs/x, steps: 10}
deepspeed: {zero_optimization: {stage: 2}}
"""
