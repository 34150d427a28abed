// The model of chargpt/model.py in JavaScript: reads one character, and predicts the next.
// Arrays are Float32Array, row by row, with PyTorch's names. C: n_embd. T: block_size.
"use strict";

class GPT {
  // config: that of the model. tensors: array by name.
  constructor(config, tensors) {
    this.config = config;
    this.tensors = tensors;
    const cache = () => Array.from({length: config.n_layer}, () => new Float32Array(config.block_size * config.n_embd));
    this.keys = cache();
    this.values = cache();
    this.length = 0; // characters that have been read
  }

  // The logits of the next character, after the characters read before and this one. The context must have room.
  read(id) {
    const {n_embd: C, n_layer} = this.config, {tensors} = this, position = this.length++;
    const x = tensors["wte.weight"].slice(id * C, (id + 1) * C);
    add(x, tensors["wpe.weight"].subarray(position * C, (position + 1) * C));
    for (let i = 0; i < n_layer; i++) {
      add(x, this.attention(i, this.norm(x, `h.${i}.ln_1`), position));
      const hidden = this.linear(this.norm(x, `h.${i}.ln_2`), `h.${i}.mlp.c_fc`).map(this.activation());
      add(x, this.linear(hidden, `h.${i}.mlp.c_proj`));
    }
    return this.linear(this.norm(x, "ln_f"), "lm_head");
  }

  // Each head looks at this position and those before it.
  attention(layer, x, position) {
    const {n_embd: C, n_head, attention_scale} = this.config, hs = C / n_head;
    const scale = (attention_scale === "head" ? hs : C) ** -0.5;
    const qkv = this.linear(x, `h.${layer}.attn.c_attn`);
    const keys = this.keys[layer], values = this.values[layer], y = new Float32Array(C);
    keys.set(qkv.subarray(C, 2 * C), position * C);
    values.set(qkv.subarray(2 * C), position * C);
    for (let start = 0; start < C; start += hs) {
      const scores = new Float32Array(position + 1);
      for (let t = 0; t <= position; t++) {
        let sum = 0;
        for (let j = start; j < start + hs; j++) sum += qkv[j] * keys[t * C + j];
        scores[t] = sum * scale;
      }
      const weights = softmax(scores);
      for (let t = 0; t <= position; t++)
        for (let j = start; j < start + hs; j++) y[j] += weights[t] * values[t * C + j];
    }
    return this.linear(y, `h.${layer}.attn.c_proj`);
  }

  // LayerNorm.
  norm(x, name) {
    const weight = this.tensors[`${name}.weight`], bias = this.tensors[`${name}.bias`];
    const mean = x.reduce((sum, value) => sum + value, 0) / x.length;
    const variance = x.reduce((sum, value) => sum + (value - mean) ** 2, 0) / x.length;
    return x.map((value, j) => (value - mean) / Math.sqrt(variance + 1e-5) * weight[j] + bias[j]);
  }

  // The product with a matrix of (out, in) values, plus the bias if there is one.
  linear(x, name) {
    const weight = this.tensors[`${name}.weight`], bias = this.tensors[`${name}.bias`], n = x.length;
    const y = new Float32Array(weight.length / n);
    for (let i = 0, at = 0; i < y.length; i++) {
      let sum = bias ? bias[i] : 0;
      for (let j = 0; j < n; j++) sum += weight[at++] * x[j];
      y[i] = sum;
    }
    return y;
  }

  activation() {
    return this.config.activation === "gelu" ? x => 0.5 * x * (1 + erf(x / Math.SQRT2)) : x => Math.max(0, x);
  }
}

function add(x, y) {
  for (let j = 0; j < x.length; j++) x[j] += y[j];
}

function softmax(x) {
  const largest = x.reduce((a, b) => Math.max(a, b), -Infinity);
  const powers = Float64Array.from(x, value => Math.exp(value - largest));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map(value => value / sum);
}

// To 1.5e-7. Source: Abramowitz and Stegun 1964, formula 7.1.26.
function erf(x) {
  const t = 1 / (1 + 0.3275911 * Math.abs(x));
  const tail = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))));
  return Math.sign(x) * (1 - tail * Math.exp(-x * x));
}
