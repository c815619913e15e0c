// Ops of training on a CPU, each with its gradient, as torch's autograd functions call them (kernels/native_training.py).
//
// A result is the same bits in every run: tasks write what nobody else writes, and each sum has one order.
#include "lora_rows.h"
#include "rows_training.h"
#include "varlen_gradient.h"

namespace cb {

// Rows of some tensor: [tokens][heads][head_dim].
struct Turned {
    Strided x;
    void* out;  // contiguous
    int64_t heads;
};

struct Rotary {
    Turned q, k;
    const void *cos, *sin;  // [tokens][pairs]
    int64_t cos_stride, sin_stride, tokens;
    int32_t head_dim, pairs, interleaved, table_is_bf16, is_bf16;
    float sign;
};

struct Gate {
    const void *gate, *up, *grad;  // grad: null in the forward pass
    void *out, *grad_gate, *grad_up;
    int64_t rows, n, gate_stride, up_stride;
};

template <class T>
void gate(const Team& team, const Gate& g) {
    const int64_t some = std::max<int64_t>(1, GATE_VALUES / std::max<int64_t>(1, g.n));
    each_block(team, g.rows, some, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            const T *gate = (const T*)g.gate + i * g.gate_stride, *up = (const T*)g.up + i * g.up_stride;
            const int64_t at = i * g.n;
            if (!g.grad) gate_row(gate, up, (T*)g.out + at, g.n);
            else gate_row_gradient((const T*)g.grad + at, gate, up, (T*)g.grad_gate + at, (T*)g.grad_up + at, g.n);
        }
    });
}

template <class T, class Table>
void rotary(const Team& team, const Rotary& r) {
    each_block(team, r.tokens, ROTARY_TOKENS, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
            for (const Turned* t : {&r.q, &r.k})
                turn_heads(t->x.at<T>(i, 0), t->x.head, (T*)t->out + i * t->heads * r.head_dim,
                           (const Table*)r.cos + i * r.cos_stride, (const Table*)r.sin + i * r.sin_stride, int(t->heads),
                           r.head_dim, r.pairs, r.interleaved != 0, r.sign);
    });
}

template <class T>
void norm_gradient(const Team& team, const NormGradient<T>& n, float* blocks, T* grad_weight) {
    const int64_t block_rows = grad_weight ? WEIGHT_ROWS : NORM_ROWS;
    each_block(team, n.rows, block_rows, [&](int64_t begin, int64_t end) {
        float* sums = grad_weight ? blocks + begin / WEIGHT_ROWS * n.hidden : nullptr;
        if (sums) std::fill_n(sums, n.hidden, 0.0f);
        for (int64_t i = begin; i < end; ++i) norm_row_gradient(n, i, sums);
    });
    if (!grad_weight) return;
    const int64_t num_blocks = (n.rows + WEIGHT_ROWS - 1) / WEIGHT_ROWS;
    for (int64_t i = 0; i < n.hidden; i += LANES) {
        const __mmask16 mask = lanes_at(i, n.hidden);
        f32x16 sum = _mm512_setzero_ps();
        for (int64_t b = 0; b < num_blocks; ++b) sum = _mm512_add_ps(sum, load16(blocks + b * n.hidden + i, mask));
        store16(grad_weight + i, sum, mask);
    }
}

}  // namespace cb

extern "C" {

// out = norm(x) * weight, or with a residual: total = x + residual, out = norm(total) * weight. `scale` [rows] is kept.
void cbt_norm(const cb::Team* team, int32_t is_bf16, const void* x, const void* residual, void* total, const void* weight,
              void* out, float* scale, int64_t rows, int64_t hidden, float eps) {
    cb::with_type(is_bf16, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        const cb::Norm<T> n{(const T*)x, (const T*)residual, (T*)total, (const T*)weight, (T*)out, scale, rows, hidden, eps};
        cb::each_block(*team, rows, cb::NORM_ROWS, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) cb::norm_row(n, i);
        });
    });
}

int64_t cbt_norm_blocks(int64_t rows) { return (rows + cb::WEIGHT_ROWS - 1) / cb::WEIGHT_ROWS; }

// `blocks` [cbt_norm_blocks(rows)][hidden] and `grad_weight` [hidden] are null where that gradient is not asked for.
void cbt_norm_gradient(const cb::Team* team, int32_t is_bf16, const void* grad, const void* grad_total, const void* x,
                       const void* weight, const float* scale, void* grad_x, float* blocks, void* grad_weight, int64_t rows,
                       int64_t hidden) {
    cb::with_type(is_bf16, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        const cb::NormGradient<T> n{(const T*)grad, (const T*)grad_total, (const T*)x, (const T*)weight, scale, (T*)grad_x,
                                    blocks, rows, hidden};
        cb::norm_gradient(*team, n, blocks, (T*)grad_weight);
    });
}

void cbt_gate(const cb::Team* team, int32_t is_bf16, const cb::Gate* g) {
    cb::with_type(is_bf16, [&](auto* type) { cb::gate<std::remove_pointer_t<decltype(type)>>(*team, *g); });
}

void cbt_rotary(const cb::Team* team, const cb::Rotary* r) {
    cb::with_type(r->is_bf16, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        cb::with_type(r->table_is_bf16, [&](auto* table) {
            cb::rotary<T, std::remove_pointer_t<decltype(table)>>(*team, *r);
        });
    });
}

void cbt_losses(const cb::Team* team, int32_t is_bf16, void* logits, int64_t stride, const int64_t* targets, float* losses,
                int64_t rows, int64_t vocab, int64_t ignored, float smoothing, int32_t with_gradient) {
    cb::with_type(is_bf16, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        cb::each_task(*team, int(rows), [&](int row, int) {
            T* x = (T*)logits + row * stride;
            if (targets[row] != ignored) {
                losses[row] = cb::loss_row(x, vocab, targets[row], smoothing, with_gradient != 0);
                return;
            }
            losses[row] = 0;
            if (with_gradient) std::fill_n(x, vocab, T(0));
        });
    });
}

// Whether whole tiles are multiplied as such from here on: where it is wanted and can be.
int32_t cbt_use_tiles(int32_t wanted) {
    cb::use_tiles = wanted && cb::tiles_allowed();
    return cb::use_tiles;
}

// x [rows][n] as a right matrix whose lanes are the rows, or with `deep` one whose depth they are. Multiples of 16, n of 32.
void cbt_lora_pack(int32_t is_bf16, const void* x, int32_t rows, int32_t n, int32_t deep, uint32_t* out) {
    cb::with_type(is_bf16, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        if (deep) cb::pack_depth((const T*)x, n, rows, n, out);
        else cb::pack_lanes((const T*)x, n, rows, n, out, rows);
    });
}

// Of `count` layers: made = scale * wide narrowing
void cbt_lora_narrow(const cb::Team* team, const cb::LoraRows* all, int32_t count) {
    cb::with_type(all->is_bf16, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        cb::each_rows(*team, all, count, [](const cb::LoraRows& r, int64_t begin, int64_t end, int, cb::LoraScratch& scratch) {
            cb::lora_narrow<T>(r, begin, end, scratch.sums);
        });
    });
}

// wide += scale * low widening
void cbt_lora_widen(const cb::Team* team, const cb::LoraRows* all, int32_t count) {
    cb::with_type(all->is_bf16, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        cb::each_rows(*team, all, count, [](const cb::LoraRows& r, int64_t begin, int64_t end, int, cb::LoraScratch& scratch) {
            cb::lora_widen<T>(r, begin, end, scratch.sums);
        });
    });
}

// sums = low' wide, and where there is a narrowing, made = scale * wide narrowing.
void cbt_lora_gradient(const cb::Team* team, const cb::LoraRows* all, int32_t count) {
    cb::with_type(all->is_bf16, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        cb::each_rows(*team, all, count,
                      [](const cb::LoraRows& r, int64_t begin, int64_t end, int number, cb::LoraScratch& scratch) {
            if (r.narrowing) cb::lora_narrow<T>(r, begin, end, scratch.sums);
            cb::lora_outer<T>(r, begin, end, number, scratch);
        });
    });
    cb::lora_add_up(*team, all, count);
}

void cbt_varlen(const cb::Team* team, const cb::Varlen* a) {
    std::vector<cb::Span> spans = cb::query_spans(*a, cb::QUERY_CHUNK);
    cb::order(spans);
    std::vector<cb::ForwardScratch> scratch(std::max(1, team->num_threads));
    cb::with_type(a->is_bf16, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        cb::each_task(*team, int(spans.size()), [&](int i, int thread) { cb::attend_span<T>(*a, spans[i], scratch[thread]); });
    });
}

void cbt_varlen_gradient(const cb::Team* team, const cb::VarlenGradient* a, int64_t tokens) {
    const std::vector<cb::GradientSpan> spans = cb::gradient_spans(a->forward);
    std::vector<cb::GradientScratch> scratch(std::max(1, team->num_threads));
    cb::with_type(a->forward.is_bf16, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        cb::each_block(*team, tokens, cb::NORM_ROWS, [&](int64_t begin, int64_t end) {
            for (int64_t t = begin; t < end; ++t)
                for (int h = 0; h < a->forward.num_heads; ++h)
                    a->delta[t * a->forward.num_heads + h] = cb::delta_of<T>(*a, t, h);
        });
        cb::each_task(*team, int(spans.size()),
                      [&](int i, int thread) { cb::gradient_span<T>(*a, spans[i], scratch[thread]); });
    });
}

}  // extern "C"
