// The forward pass of a LLaMA-shaped decoder over one ragged batch, as one call: ten stages a layer, with a barrier
// after each, in threads of our own. Also single products, for tests and for models of other shapes.
#include <map>

#include "attention_tiles.h"
#include "likeliest.h"
#include "sampling.h"

namespace cb {

struct LoraTarget {     // one adapter at one fused weight; rank 0: the adapter leaves it alone
    const float* a;     // [rank][k]
    const float* b;     // [n][rank], the scale included
    int32_t rank;
    int32_t reserved;
};

struct Layer {
    const float* input_norm;
    const float* post_norm;
    const float* q_norm;  // [head_dim], or null
    const float* k_norm;
    Weight qkv, o, gate_up, down;
    int32_t window;  // keys that a query sees, itself included; 0: all before it
    int32_t reserved;
    KVCache cache;
    const LoraTarget* lora[4];  // of qkv, o, gate_up, down: [num_adapters], or null
};

struct Model {
    int32_t num_layers, hidden, intermediate, num_heads, num_kv_heads, head_dim, kv_format, block_size;
    float eps, scale;
    const float* norm;
    const Weight* embedding;
    const Layer* layers;
};

struct Batch {
    int32_t num_tokens, num_seqs, table_width, num_adapters;
    const int64_t* token_ids;     // [num_tokens]
    const int64_t* positions;     // [num_tokens]
    const int64_t* slots;         // [num_tokens]
    const int64_t* query_starts;  // [num_seqs + 1]
    const int64_t* block_tables;  // [num_seqs][table_width]
    const float* cos;             // [num_tokens][head_dim / 2]
    const float* sin;
    const int32_t* adapters;      // [num_tokens]: index + 1 of each token's adapter, 0 for none; null if none has one
};

constexpr int ROWS_OF_A_PART = 64;  // at least, where rows are divided among threads

struct Task {  // of attention
    int32_t seq, head, first_row, num_rows;
};

class Engine {
public:
    explicit Engine(int num_threads) : pool(num_threads), scratch(pool.num_threads()) {}

    void forward(const Model& model, const Batch& batch, float* out) {
        prepare(model, batch);
        pool.run([&](int thread) { run(model, batch, out, thread); });
    }

    void linear(const Weight& w, const float* x, int m, const Output& out) {
        rows.shape(m, w.k, w.format);
        pool.run([&](int thread) {
            row_stage(thread, m, [&](int i, int) { rows.set(i, x + int64_t(i) * w.k, w.k, w.order); });
            product(w, rows, out, thread);
        });
    }

    // The likeliest of a vocabulary for each row of x: the first of the largest of the product; -1 where it is not finite.
    void likeliest(const Weight& w, const float* x, int m, int64_t* tokens) {
        rows.shape(m, w.k, w.format);
        pool.run([&](int thread) {
            Likeliest& mine = scratch[thread].likeliest;
            mine.begin(m);
            row_stage(thread, m, [&](int i, int) { rows.set(i, x + int64_t(i) * w.k, w.k, w.order); });
            each_panel(w, rows, thread, [&](int panel, const uint8_t* next) {
                const int column = panel * PANEL;
                linear_panel(w, rows, {0, m}, mine.output(column), panel, next);
                mine.take(m, column, w.n - column);
            });
        });
        for (int i = 0; i < m; ++i) tokens[i] = Likeliest::token(scratch, i);
    }

    Pool pool;

private:
    void prepare(const Model& model, const Batch& batch) {
        const int tokens = batch.num_tokens;
        layout = {model.kv_format, model.num_kv_heads, model.head_dim, model.num_layers};
        const size_t q_size = size_t(model.num_heads) * model.head_dim;
        const size_t kv_size = size_t(model.num_kv_heads) * model.head_dim;
        grow(residual, size_t(tokens) * model.hidden);
        grow(wide, size_t(tokens) * std::max<size_t>(q_size + 2 * kv_size, model.intermediate));
        grow(attended, size_t(tokens) * q_size);
        if (batch.adapters) grow(normed, size_t(tokens) * std::max<size_t>(model.hidden, model.intermediate));
        queries.shape(layout, size_t(tokens) * model.num_heads);
        for (int l = 0; l < model.num_layers; ++l) {
            const Layer& layer = model.layers[l];
            for (const Weight* w : {&layer.qkv, &layer.o, &layer.gate_up, &layer.down})
                inputs[{w->k, Rows::form(w->format, w->k)}].shape(tokens, w->k, w->format);
        }
        // Rows of a task: the heads that share a key/value head, for as many tokens as fit.
        tasks.clear();
        const int group = model.num_heads / model.num_kv_heads;
        attention_on_tiles = false;
        for (int seq = 0; seq < batch.num_seqs; ++seq) {
            const int num_rows = int(batch.query_starts[seq + 1] - batch.query_starts[seq]) * group;
            const bool tiles = num_rows > ROWS && attends_on_tiles(layout);
            attention_on_tiles |= tiles;
            const int most = tiles ? MAX_TILE : ROWS;
            for (int first = 0; first < num_rows; first += most)
                for (int head = 0; head < model.num_kv_heads; ++head)
                    tasks.push_back({seq, head, first, std::min(most, num_rows - first)});
        }
        // The longest first: what is claimed last should be short.
        std::stable_sort(tasks.begin(), tasks.end(), [&](const Task& a, const Task& b) {
            return last_position(batch, a, group) > last_position(batch, b, group);
        });
    }

    static int64_t last_position(const Batch& batch, const Task& task, int group) {
        return batch.positions[batch.query_starts[task.seq] + (task.first_row + task.num_rows - 1) / group];
    }

    template <class T>
    static void grow(Lines<T>& v, size_t size) {
        if (v.size() < size) v.resize(size);
    }

    void run(const Model& model, const Batch& batch, float* out, int thread) {
        const int tokens = batch.num_tokens, hidden = model.hidden;
        const int q_size = model.num_heads * model.head_dim, kv_size = model.num_kv_heads * model.head_dim;
        const int qkv_size = q_size + 2 * kv_size;
        row_stage(thread, tokens, [&](int i, int) {
            unpack_row(*model.embedding, int(batch.token_ids[i]), residual.data() + int64_t(i) * hidden);
        });
        for (int l = 0; l < model.num_layers; ++l) {
            const Layer& layer = model.layers[l];
            norm_stage(layer.input_norm, model, batch, layer.qkv, thread);
            product(layer.qkv, inputs_of(layer.qkv), {wide.data(), qkv_size, STORE}, thread);
            adapt(batch, layer.lora[0], layer.qkv, normed.data(), wide.data(), qkv_size, thread);
            row_stage(thread, tokens, [&](int i, int) { turn_and_write(model, layer, batch, i); });
            attention_stage(model, layer, batch, thread);
            quantize_stage(attended.data(), tokens, layer.o, thread);
            product(layer.o, inputs_of(layer.o), {residual.data(), hidden, ADD}, thread);
            adapt(batch, layer.lora[1], layer.o, attended.data(), residual.data(), hidden, thread);
            norm_stage(layer.post_norm, model, batch, layer.gate_up, thread);
            if (batch.adapters && layer.lora[2]) {  // what an adapter adds comes before the product of the halves
                grow_once(thread, both, size_t(tokens) * layer.gate_up.n);
                product(layer.gate_up, inputs_of(layer.gate_up), {both.data(), layer.gate_up.n, STORE}, thread);
                adapt(batch, layer.lora[2], layer.gate_up, normed.data(), both.data(), layer.gate_up.n, thread);
                row_stage(thread, tokens, [&](int i, int) { multiply_halves(model, i); });
            } else {
                product(layer.gate_up, inputs_of(layer.gate_up), {wide.data(), model.intermediate, SILU_MUL}, thread);
            }
            quantize_stage(wide.data(), tokens, layer.down, thread);
            product(layer.down, inputs_of(layer.down), {residual.data(), hidden, ADD}, thread);
            adapt(batch, layer.lora[3], layer.down, wide.data(), residual.data(), hidden, thread);
        }
        row_stage(thread, tokens, [&](int i, int) {
            rms_norm(residual.data() + int64_t(i) * hidden, model.norm, hidden, model.eps, out + int64_t(i) * hidden);
        });
    }

    void grow_once(int thread, Lines<float>& v, size_t size) {
        pool.stage(thread, 1, [&](int, int) { grow(v, size); });
    }

    // A stage with a task for each row. Many are claimed in blocks: rows of a block write to the same lines.
    template <class Task>
    void row_stage(int thread, int num_rows, Task&& task) {
        if (in_parts(num_rows)) {
            const int blocks = (part(num_rows, 0).end + BLOCK_ROWS - 1) / BLOCK_ROWS;
            pool.stage_in_parts(thread, blocks, [&](int index, int block, int id) {
                const Span span = part(num_rows, index);
                const int first = span.begin + block * BLOCK_ROWS, end = std::min(span.end, first + BLOCK_ROWS);
                for (int i = first; i < end; ++i) task(i, id);
            });
            return;
        }
        const int rows = num_rows >= BLOCK_ROWS * pool.num_threads() ? BLOCK_ROWS : 1;
        pool.stage(thread, (num_rows + rows - 1) / rows, [&](int block, int id) {
            const int end = std::min(num_rows, (block + 1) * rows);
            for (int i = block * rows; i < end; ++i) task(i, id);
        });
    }

    // Many rows are divided among the threads, so that what a thread writes is mostly what it reads in the next stage: to
    // fetch it from another core takes longer than to read the weights once for each thread.
    bool in_parts(int num_rows) const { return num_rows >= ROWS_OF_A_PART * pool.num_threads() && pool.num_threads() > 1; }

    // A multiple of 16 rows for each thread, of the last ones fewer.
    Span part(int num_rows, int index) const {
        const int rows = round_up((num_rows + pool.num_threads() - 1) / pool.num_threads(), MAX_TILE);
        return {std::min(num_rows, index * rows), std::min(num_rows, (index + 1) * rows)};
    }

    void product(const Weight& w, const Rows& x, const Output& out, int thread) {
        if (!in_parts(x.m)) {
            each_panel(w, x, thread, [&](int panel, const uint8_t* next) {
                linear_panel(w, x, {0, x.m}, out, panel, next);
            });
            return;
        }
        const int panels = num_panels(w.n);
        const int64_t bytes = panel_bytes(w.format, w.k);
        const PanelTiles tiles(rows_of_tiles(w, x), in_groups(w));
        pool.stage_in_parts(thread, panels, [&](int index, int panel, int) {
            linear_panel(w, x, part(x.m, index), out, panel, panel + 1 < panels ? w.data + (panel + 1) * bytes : nullptr);
        });
    }

    // A stage with a task for each panel, which gets the one that its thread will probably take next.
    template <class Task>
    void each_panel(const Weight& w, const Rows& x, int thread, Task&& task) {
        // Threads take panels in turns, more or less.
        const int panels = num_panels(w.n), ahead = pool.num_threads();
        const int64_t bytes = panel_bytes(w.format, w.k);
        const PanelTiles tiles(rows_of_tiles(w, x), in_groups(w));
        pool.stage(thread, panels, [&](int panel, int) {
            task(panel, panel + ahead < panels ? w.data + (panel + ahead) * bytes : nullptr);
        });
    }

    void norm_stage(const float* weight, const Model& model, const Batch& batch, const Weight& next, int thread) {
        const int hidden = model.hidden;
        Rows& rows = inputs_of(next);
        row_stage(thread, batch.num_tokens, [&](int i, int id) {
            float* to = batch.adapters ? normed.data() + int64_t(i) * hidden : scratch[id].row(hidden);
            rms_norm(residual.data() + int64_t(i) * hidden, weight, hidden, model.eps, to);
            rows.set(i, to, hidden, next.order);
        });
    }

    void quantize_stage(const float* x, int tokens, const Weight& next, int thread) {
        Rows& rows = inputs_of(next);
        row_stage(thread, tokens, [&](int i, int) { rows.set(i, x + int64_t(i) * next.k, next.k, next.order); });
    }

    static void rms_norm(const float* x, const float* weight, int n, float eps, float* out) {
        f32x16 sum = _mm512_setzero_ps();
        const int whole = n / LANES * LANES;
        for (int i = 0; i < whole; i += LANES) {
            const f32x16 v = _mm512_loadu_ps(x + i);
            sum = _mm512_fmadd_ps(v, v, sum);
        }
        float squares = _mm512_reduce_add_ps(sum);
        for (int i = whole; i < n; ++i) squares += x[i] * x[i];
        const float factor = 1.0f / std::sqrt(squares / float(n) + eps);
        for (int i = 0; i < whole; i += LANES)
            _mm512_storeu_ps(out + i, _mm512_mul_ps(_mm512_mul_ps(_mm512_loadu_ps(x + i), _mm512_set1_ps(factor)),
                                                    _mm512_loadu_ps(weight + i)));
        for (int i = whole; i < n; ++i) out[i] = x[i] * factor * weight[i];
    }

    // Rotary position embedding in the halves layout: dimension d turns with d + head_dim / 2.
    static void turn(float* x, const float* cos, const float* sin, int half, float scale) {
        const f32x16 s = _mm512_set1_ps(scale);
        for (int d = 0; d < half; d += LANES) {
            const __mmask16 mask = half - d >= LANES ? 0xffff : __mmask16((1u << (half - d)) - 1);
            const f32x16 a = _mm512_maskz_loadu_ps(mask, x + d), b = _mm512_maskz_loadu_ps(mask, x + half + d);
            const f32x16 c = _mm512_mul_ps(s, _mm512_maskz_loadu_ps(mask, cos + d));
            const f32x16 n = _mm512_mul_ps(s, _mm512_maskz_loadu_ps(mask, sin + d));
            _mm512_mask_storeu_ps(x + d, mask, _mm512_fmsub_ps(a, c, _mm512_mul_ps(b, n)));
            _mm512_mask_storeu_ps(x + half + d, mask, _mm512_fmadd_ps(b, c, _mm512_mul_ps(a, n)));
        }
    }

    void turn_and_write(const Model& model, const Layer& layer, const Batch& batch, int i) {
        const int hd = model.head_dim, half = hd / 2;
        float* heads = wide.data() + int64_t(i) * (model.num_heads + 2 * model.num_kv_heads) * hd;
        const float *cos = batch.cos + int64_t(i) * half, *sin = batch.sin + int64_t(i) * half;
        for (int h = 0; h < model.num_heads; ++h) {
            float* q = heads + h * hd;
            if (layer.q_norm) rms_norm(q, layer.q_norm, hd, model.eps, q);
            turn(q, cos, sin, half, model.scale * LOG2_E);
            queries.set(layout, size_t(i) * model.num_heads + h, q);
        }
        float* keys = heads + model.num_heads * hd;
        float* values = keys + model.num_kv_heads * hd;
        for (int h = 0; h < model.num_kv_heads; ++h) {
            float* k = keys + h * hd;
            if (layer.k_norm) rms_norm(k, layer.k_norm, hd, model.eps, k);
            turn(k, cos, sin, half, 1.0f);
            write_kv(layout, layer.cache, batch.slots[i], h, k, values + h * hd);
        }
    }

    void attention_stage(const Model& model, const Layer& layer, const Batch& batch, int thread) {
        const PanelTiles tiles(attention_on_tiles ? MAX_TILE : 0, false);
        pool.stage(thread, int(tasks.size()), [&](int i, int id) { attention_task(model, layer, batch, i, id); });
    }

    void attention_task(const Model& model, const Layer& layer, const Batch& batch, int index, int thread) {
        const Task& task = tasks[index];
        const int hd = model.head_dim, group = model.num_heads / model.num_kv_heads;
        RowGroup g;
        g.layout = &layout;
        g.cache = &layer.cache;
        g.blocks = batch.block_tables + int64_t(task.seq) * batch.table_width;
        g.tiles_per_block = model.block_size / TILE;
        g.head = task.head;
        g.num_rows = task.num_rows;
        for (int m = 0; m < task.num_rows; ++m) {
            const int64_t token = batch.query_starts[task.seq] + (task.first_row + m) / group;
            const size_t row = size_t(token) * model.num_heads + task.head * group + (task.first_row + m) % group;
            g.queries[m] = queries.data.data() + row * layout.query_bytes();
            g.query_scales[m] = queries.scales[row];
            g.query_sums[m] = queries.sums.data() + row * QUARTERS;
            g.query_offsets[m] = 128 * std::accumulate(g.query_sums[m], g.query_sums[m] + QUARTERS, 0);
            g.last_key[m] = int(batch.positions[token]);
            g.first_key[m] = layer.window ? std::max(0, g.last_key[m] - layer.window + 1) : 0;
            g.out[m] = attended.data() + row * hd;
        }
        if (g.num_rows > ROWS) attend_on_tiles(g, scratch[thread].attention);
        else attend(g, scratch[thread].attention);
    }

    // y[i] += B (A x[i]) for each row with an adapter.
    void adapt(const Batch& batch, const LoraTarget* targets, const Weight& w, const float* x, float* y, int64_t stride,
               int thread) {
        if (!batch.adapters || !targets) return;
        pool.stage(thread, batch.num_tokens, [&](int i, int id) {
            if (!batch.adapters[i]) return;
            const LoraTarget& target = targets[batch.adapters[i] - 1];
            if (!target.rank) return;
            float* low = scratch[id].low(target.rank);
            const float* row = x + int64_t(i) * w.k;
            for (int r = 0; r < target.rank; ++r) low[r] = dot(target.a + int64_t(r) * w.k, row, w.k);
            float* out = y + int64_t(i) * stride;
            for (int n = 0; n < w.n; ++n) out[n] += dot(target.b + int64_t(n) * target.rank, low, target.rank);
        });
    }

    static float dot(const float* a, const float* b, int n) {
        f32x16 sum = _mm512_setzero_ps();
        for (int i = 0; i < n; i += LANES) {
            const __mmask16 mask = n - i >= LANES ? 0xffff : __mmask16((1u << (n - i)) - 1);
            sum = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(mask, a + i), _mm512_maskz_loadu_ps(mask, b + i), sum);
        }
        return _mm512_reduce_add_ps(sum);
    }

    void multiply_halves(const Model& model, int i) {
        const float* from = both.data() + int64_t(i) * 2 * model.intermediate;
        float* to = wide.data() + int64_t(i) * model.intermediate;
        for (int n = 0; n < model.intermediate; n += LANES)
            _mm512_storeu_ps(to + n, _mm512_mul_ps(silu_16(_mm512_loadu_ps(from + 2 * n)),
                                                   _mm512_loadu_ps(from + 2 * n + LANES)));
    }

    // Where the rows of x for a product are kept. Weights of one model may differ in k and in format, and a stage must
    // not resize what another thread reads; so there is one for each length and form. Made by `prepare`.
    Rows& inputs_of(const Weight& w) { return inputs.at({w.k, Rows::form(w.format, w.k)}); }

    struct Scratch {
        AttentionScratch attention;
        Likeliest likeliest;
        Lines<float> buffer, lows;
        float* row(size_t n) {
            if (buffer.size() < n) buffer.resize(n);
            return buffer.data();
        }
        float* low(size_t n) {
            if (lows.size() < n) lows.resize(n);
            return lows.data();
        }
    };

    KVLayout layout{};
    Lines<float> residual, wide, attended, normed, both;
    Rows rows;
    std::map<std::pair<int, int>, Rows> inputs;
    Queries queries;
    std::vector<Task> tasks;
    bool attention_on_tiles = false;  // some of them
    std::vector<Scratch> scratch;
};

}  // namespace cb

namespace cb {

// `body(i)` for each i below `count`, in up to `num_threads` threads that live for this call.
template <class Body>
void in_threads(int count, int64_t num_threads, Body&& body) {
    num_threads = std::min<int64_t>(num_threads, std::thread::hardware_concurrency());
    if (num_threads <= 1) {
        for (int i = 0; i < count; ++i) body(i);
        return;
    }
    std::vector<std::thread> threads;
    for (int id = 0; id < num_threads; ++id)
        threads.emplace_back([&, id] {
            for (int i = id; i < count; i += int(num_threads)) body(i);
        });
    for (auto& thread : threads) thread.join();
}

}  // namespace cb

// Weights that are worth a thread: some milliseconds.
constexpr int64_t PACKED_BY_A_THREAD = 250'000;

extern "C" {

void* cb_engine_new(int32_t num_threads) { return new cb::Engine(num_threads); }
void cb_engine_free(void* engine) { delete (cb::Engine*)engine; }

// How many bits inputs of a product with INT8 keep.
int32_t cb_int8_input_bits(int32_t k) { return cb::Rows::form(cb::INT8, k) == cb::HALVES ? 16 : 8; }

int64_t cb_weight_bytes(int32_t format, int32_t n, int32_t k) { return cb::weight_bytes(format, n, k); }

// `count` rows [k] of a matrix of `n` rows, each to its place, into `data` (zeroed, weight_bytes).
void cb_pack(int32_t format, int32_t n, int32_t k, const float* rows, const int64_t* places, int32_t count,
             uint8_t* data) {
    const int64_t bytes = cb::panel_bytes(format, k);
    float* scales = (float*)(data + cb::num_panels(n) * bytes);
    cb::in_threads(count, int64_t(count) * k / PACKED_BY_A_THREAD, [&](int i) {
        float unused;
        const int64_t place = places[i];
        cb::pack_column(format, rows + int64_t(i) * k, k, data + place / cb::PANEL * bytes, int(place % cb::PANEL),
                        format == cb::INT8 ? scales + place : &unused);
    });
}

// The same of rows that are quantized already, INT8 or INT4; see `pack_codes`.
void cb_pack_codes(int32_t format, int32_t n, int32_t k, const uint8_t* codes, const void* scales,
                   const uint16_t* minimums, const int64_t* places, int32_t count, uint8_t* data) {
    const int64_t bytes = cb::panel_bytes(format, k);
    const int64_t code_bytes = format == cb::INT8 ? k : k / 2, groups = format == cb::INT8 ? 1 : k / cb::GROUP;
    const int64_t scale_bytes = format == cb::INT8 ? 4 : groups * 2;
    float* panel_scales = (float*)(data + cb::num_panels(n) * bytes);
    cb::in_threads(count, int64_t(count) * k / PACKED_BY_A_THREAD, [&](int i) {
        float unused;
        const int64_t place = places[i];
        cb::pack_codes(format, codes + i * code_bytes, (const uint8_t*)scales + i * scale_bytes,
                       minimums ? minimums + i * groups : nullptr, k, data + place / cb::PANEL * bytes, int(place % cb::PANEL),
                       format == cb::INT8 ? panel_scales + place : &unused);
    });
}

void cb_unpack(const cb::Weight* w, const int64_t* which, int32_t count, float* out) {
    for (int i = 0; i < count; ++i) cb::unpack_row(*w, int(which[i]), out + int64_t(i) * w->k);
}

void cb_linear(void* engine, const cb::Weight* w, const float* x, int32_t m, float* y, int64_t stride, int32_t finish) {
    ((cb::Engine*)engine)->linear(*w, x, m, {y, stride, finish});
}

void cb_likeliest(void* engine, const cb::Weight* w, const float* x, int32_t m, int64_t* tokens) {
    ((cb::Engine*)engine)->likeliest(*w, x, m, tokens);
}

void cb_forward(void* engine, const cb::Model* model, const cb::Batch* batch, float* out) {
    ((cb::Engine*)engine)->forward(*model, *batch, out);
}

// `task(row)` for each row, in the engine's threads.
static void each_row(void* engine, int32_t num_rows, const std::function<void(int)>& task) {
    cb::Pool& pool = ((cb::Engine*)engine)->pool;
    if (num_rows == 1) return task(0);
    pool.run([&](int thread) { pool.stage(thread, num_rows, [&](int row, int) { task(row); }); });
}

void cb_greedy(const float* logits, int32_t num_rows, int64_t vocab, int64_t* tokens) {
    for (int row = 0; row < num_rows; ++row)  // sooner done than other threads are awake
        tokens[row] = cb::RowSampler::greedy(logits + row * vocab, vocab);
}

void cb_sample(void* engine, const float* logits, int32_t num_rows, int64_t vocab, const double* temperature,
               const int64_t* top_k, const double* top_p, const double* min_p, const double* uniform, int64_t* tokens) {
    each_row(engine, num_rows, [&](int row) {
        const cb::Drawing drawing{temperature[row], top_k[row], top_p[row], min_p[row], uniform[row]};
        tokens[row] = cb::row_sampler().draw(logits + row * vocab, vocab, drawing);
    });
}

// Of each row: the log-probability of its token, and the likeliest `num_top` with theirs.
void cb_token_logprobs(void* engine, const float* logits, int32_t num_rows, int64_t vocab, const int64_t* tokens,
                       int32_t num_top, float* own, int64_t* top_ids, float* top) {
    each_row(engine, num_rows, [&](int row) {
        const float* x = logits + row * vocab;
        const double total = cb::RowSampler::log_sum(x, vocab);
        own[row] = float(double(x[tokens[row]]) - total);
        float* values = top + int64_t(row) * num_top;
        cb::RowSampler::largest(x, vocab, num_top, top_ids + int64_t(row) * num_top, values);
        for (int i = 0; i < num_top; ++i) values[i] = float(double(values[i]) - total);
    });
}

}  // extern "C"
