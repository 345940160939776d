"""demo"""
from mlm_jax.config import BertConfig, DataConfig, OptimizerConfig, TrainConfig
def config() -> TrainConfig:
    return TrainConfig(output_dir="runs/demo", model=BertConfig(vocabulary_size=2200, num_layers=2, hidden_dim=128, num_heads=2, intermediate_dim=512, max_sequence_length=128, pooler=False),
      data=DataConfig(path="runs/demo-data", sequence_length=32, packing="document"),
      optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=200, ), num_steps=4000, batch_size=32, log_every=50, checkpoint_every=1000, eval_every=500)
