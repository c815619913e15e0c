// What training does to rows besides products: norms, the gate, rotary positions, the loss; each with its gradient.
//
// Memory holds T, registers float32. A row is one task's, and sums over rows are made of blocks of rows of a fixed size
// in their order, so that results do not depend on the threads.
#pragma once

#include <algorithm>

#include "elements.h"
#include "team.h"

namespace cb {

// ---- root mean square norm ----

constexpr int64_t NORM_ROWS = 32;      // of one task
constexpr int64_t WEIGHT_ROWS = 256;   // whose share of a weight's gradient is summed by itself

template <class T>
struct Norm {
    const T* x;          // [rows][hidden]
    const T* residual;   // the same, added to x first; null for none
    T* total;            // x + residual, where there is one
    const T* weight;     // [hidden]
    T* out;
    float* scale;        // [rows], kept for the gradient
    int64_t rows, hidden;
    float eps;
};

template <class T>
void norm_row(const Norm<T>& n, int64_t row) {
    const int64_t at = row * n.hidden;
    const T* x = n.x + at;
    f32x16 sums[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
    for (int64_t i = 0; i < n.hidden; i += LANES) {
        const __mmask16 mask = lanes_at(i, n.hidden);
        f32x16 v = load16(x + i, mask);
        if (n.residual) {
            v = rounded<T>(_mm512_add_ps(v, load16(n.residual + at + i, mask)));
            store16(n.total + at + i, v, mask);
        }
        f32x16& sum = sums[i / LANES % 2];
        sum = _mm512_fmadd_ps(v, v, sum);
    }
    const float squares = _mm512_reduce_add_ps(_mm512_add_ps(sums[0], sums[1]));
    const float scale = 1.0f / std::sqrt(squares / float(n.hidden) + n.eps);
    n.scale[row] = scale;
    if (n.residual) x = n.total + at;
    for (int64_t i = 0; i < n.hidden; i += LANES) {
        const __mmask16 mask = lanes_at(i, n.hidden);
        // Rounded before the weight comes to it, as families' own code does.
        const f32x16 normed = rounded<T>(_mm512_mul_ps(load16(x + i, mask), _mm512_set1_ps(scale)));
        store16(n.out + at + i, _mm512_mul_ps(normed, load16(n.weight + i, mask)), mask);
    }
}

template <class T>
struct NormGradient {
    const T* grad;        // of out, [rows][hidden]
    const T* grad_total;  // of x + residual from elsewhere; null for none
    const T* x;           // what was normed
    const T* weight;
    const float* scale;
    T* grad_x;
    float* grad_weight;   // [blocks of WEIGHT_ROWS][hidden]; null where it is not asked for
    int64_t rows, hidden;
};

template <class T>
void norm_row_gradient(const NormGradient<T>& n, int64_t row, float* grad_weight) {
    const int64_t at = row * n.hidden;
    const float scale = n.scale[row];
    f32x16 sums[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
    for (int64_t i = 0; i < n.hidden; i += LANES) {
        const __mmask16 mask = lanes_at(i, n.hidden);
        const f32x16 grad = load16(n.grad + at + i, mask), x = load16(n.x + at + i, mask);
        const f32x16 product = _mm512_mul_ps(grad, x);
        f32x16& sum = sums[i / LANES % 2];
        sum = _mm512_fmadd_ps(product, load16(n.weight + i, mask), sum);
        if (grad_weight)
            store16(grad_weight + i, _mm512_fmadd_ps(product, _mm512_set1_ps(scale), load16(grad_weight + i, mask)), mask);
    }
    const float along = _mm512_reduce_add_ps(_mm512_add_ps(sums[0], sums[1])) * scale * scale / float(n.hidden);
    for (int64_t i = 0; i < n.hidden; i += LANES) {
        const __mmask16 mask = lanes_at(i, n.hidden);
        const f32x16 inner = _mm512_mul_ps(load16(n.grad + at + i, mask), load16(n.weight + i, mask));
        f32x16 grad = _mm512_fnmadd_ps(load16(n.x + at + i, mask), _mm512_set1_ps(along), inner);
        grad = _mm512_mul_ps(grad, _mm512_set1_ps(scale));
        if (n.grad_total) grad = _mm512_add_ps(grad, load16(n.grad_total + at + i, mask));
        store16(n.grad_x + at + i, grad, mask);
    }
}

// ---- silu(gate) * up ----

constexpr int64_t GATE_VALUES = 1 << 14;  // of one task

template <class T>
void gate_row(const T* gate, const T* up, T* out, int64_t n) {
    for (int64_t i = 0; i < n; i += LANES) {
        const __mmask16 mask = lanes_at(i, n);
        const f32x16 g = load16(gate + i, mask);
        const f32x16 activated = rounded<T>(_mm512_mul_ps(g, sigmoid_16<T>(g)));
        store16(out + i, _mm512_mul_ps(activated, load16(up + i, mask)), mask);
    }
}

template <class T>
void gate_row_gradient(const T* grad, const T* gate, const T* up, T* grad_gate, T* grad_up, int64_t n) {
    const f32x16 one = _mm512_set1_ps(1.0f);
    for (int64_t i = 0; i < n; i += LANES) {
        const __mmask16 mask = lanes_at(i, n);
        const f32x16 g = load16(gate + i, mask), d = load16(grad + i, mask);
        const f32x16 sigmoid = sigmoid_16<T>(g);
        const f32x16 silu = _mm512_mul_ps(g, sigmoid);
        // silu' = sigmoid + silu (1 - sigmoid)
        const f32x16 slope = _mm512_fmadd_ps(silu, _mm512_sub_ps(one, sigmoid), sigmoid);
        store16(grad_up + i, _mm512_mul_ps(d, silu), mask);
        store16(grad_gate + i, _mm512_mul_ps(_mm512_mul_ps(d, load16(up + i, mask)), slope), mask);
    }
}

// ---- rotary positions ----

constexpr int64_t ROTARY_TOKENS = 16;  // of one task

template <class T, class Table>
void turn_halves(const T* x, T* out, const Table* cos, const Table* sin, int pairs, f32x16 sign) {
    for (int i = 0; i < pairs; i += LANES) {
        const __mmask16 mask = lanes_at(i, pairs);
        const f32x16 a = load16(x + i, mask), b = load16(x + pairs + i, mask);
        const f32x16 c = load16(cos + i, mask), s = _mm512_mul_ps(load16(sin + i, mask), sign);
        store16(out + i, _mm512_fmsub_ps(a, c, _mm512_mul_ps(b, s)), mask);
        store16(out + pairs + i, _mm512_fmadd_ps(b, c, _mm512_mul_ps(a, s)), mask);
    }
}

template <class T, class Table>
void turn_neighbours(const T* x, T* out, const Table* cos, const Table* sin, int pairs, f32x16 sign) {
    const i32x16 twice = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
    for (int i = 0; i < pairs; i += LANES / 2) {
        const __mmask16 mask = lanes_at(2 * i, 2 * pairs), half = lanes_at(i, pairs) & 0xff;
        const f32x16 v = load16(x + 2 * i, mask);
        const f32x16 swapped = _mm512_permute_ps(v, 0xb1);
        const f32x16 c = _mm512_permutexvar_ps(twice, load16(cos + i, half));
        const f32x16 s = _mm512_mul_ps(_mm512_permutexvar_ps(twice, load16(sin + i, half)), sign);
        store16(out + 2 * i, _mm512_fmaddsub_ps(v, c, _mm512_mul_ps(swapped, s)), mask);  // - at even places, + at odd
    }
}

// Heads of one token; `sign` -1 turns back, which is what a gradient does.
template <class T, class Table>
void turn_heads(const T* x, int64_t head_stride, T* out, const Table* cos, const Table* sin, int heads, int head_dim,
                int pairs, bool interleaved, float sign) {
    const f32x16 s = _mm512_set1_ps(sign);
    for (int h = 0; h < heads; ++h, x += head_stride, out += head_dim) {
        if (interleaved) turn_neighbours(x, out, cos, sin, pairs, s);
        else turn_halves(x, out, cos, sin, pairs, s);
        std::memcpy(out + 2 * pairs, x + 2 * pairs, (head_dim - 2 * pairs) * sizeof(T));
    }
}

// ---- cross-entropy ----

// The loss of one row of logits, which become its gradient where that is asked for. NaN, and an infinite logit, give NaN.
template <class T>
float loss_row(T* x, int64_t vocab, int64_t target, float smoothing, bool with_gradient) {
    f32x16 top = _mm512_set1_ps(-INFINITY), plain = _mm512_setzero_ps();
    for (int64_t i = 0; i < vocab; i += LANES) {
        const __mmask16 mask = lanes_at(i, vocab);
        const f32x16 v = load16(x + i, mask);
        top = _mm512_mask_max_ps(top, mask, top, v);
        plain = _mm512_add_ps(plain, v);
    }
    const float largest = _mm512_reduce_max_ps(top);
    const f32x16 factor = _mm512_set1_ps(LOG2_OF_E), shift = _mm512_set1_ps(largest);
    f32x16 sums[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
    for (int64_t i = 0; i < vocab; i += LANES) {
        const __mmask16 mask = lanes_at(i, vocab);
        f32x16& sum = sums[i / LANES % 2];
        sum = _mm512_mask_add_ps(sum, mask, sum, exp2_nan(_mm512_mul_ps(_mm512_sub_ps(load16(x + i, mask), shift), factor)));
    }
    const float log_sum = largest + std::log(_mm512_reduce_add_ps(_mm512_add_ps(sums[0], sums[1])));
    const float at_target = to_float(x[target]), share = smoothing / float(vocab);
    float loss = log_sum - (1 - smoothing) * at_target;
    if (smoothing != 0) loss -= share * _mm512_reduce_add_ps(plain);
    if (with_gradient) {
        const f32x16 all = _mm512_set1_ps(log_sum);
        for (int64_t i = 0; i < vocab; i += LANES) {
            const __mmask16 mask = lanes_at(i, vocab);
            const f32x16 e = exp2_nan(_mm512_mul_ps(_mm512_sub_ps(load16(x + i, mask), all), factor));
            store16(x + i, _mm512_sub_ps(e, _mm512_set1_ps(share)), mask);
        }
        from_float(std::exp(at_target - log_sum) - share - (1 - smoothing), x[target]);
    }
    return loss;
}

}  // namespace cb
