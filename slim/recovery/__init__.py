"""Recovery: closed-form repair, pruning in rounds, distillation and LoRA, with figures before and after each step."""
