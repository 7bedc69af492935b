/* One forward pass of a LLaMA for a handful of tokens per sequence, in float32, on a CPU.
 *
 * A pass takes `rows` sequences by `chunk` new tokens: M = rows * chunk token rows. Threads share out output columns
 * (products) or queries (attention) of one stage after the other, see team.h:
 *
 *     embed | per layer: norm + qkv | rotate, write cache | attend | out | norm + gate, up | down | norm + head
 *
 * Logits are wanted after each row's last token only: in the last layer the other tokens stop at their keys and values.
 *
 * Same bits whatever else is in the batch: a number is always summed by the same instructions in the same order. Every
 * sum below runs over a length that the row alone decides, in explicit vectors, and token rows are padded to a multiple
 * of TILE, so that no row ever takes another path than its neighbour.
 *
 * Weights (packed in Python, decoder.py). A matrix [out, in] is cut into panels of PANEL outputs; a panel is stored
 * [in][PANEL], so one pass reads it front to back exactly once, however many rows there are. Outputs are padded with
 * zeros to whole panels. In gate_up a panel holds PANEL/2 gate columns, then the PANEL/2 up columns that belong to
 * them. A norm's weight and the root of the width are multiplied into the matrix behind it; what is left of an RMS norm
 * is one factor per row, which is applied to the product instead of to the input.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "team.h"
#include "vectors.h"

typedef struct {
    const float *qkv, *out, *gate_up, *down; /* panels */
} Layer;

typedef struct {
    int64_t layers, hidden, ffn, heads, kv_heads, head_dim, vocabulary, codes;
    double floor;           /* width times epsilon, added to a row's sum of squares */
    const float *embedding; /* [vocabulary][hidden] */
    const float *head;      /* panels of the `codes` outputs */
    const Layer *layer;
} Model;

typedef struct {
    int64_t rows, chunk, threads;
    int64_t samples; /* rows per group; rows of a group are adjacent */
    int64_t prefix;  /* tokens that a group shares */
    int64_t length;  /* own tokens per row, before this pass */
    const int64_t *ids;  /* [rows][chunk] */
    const float *phases; /* [chunk][head_dim / 2] pairs (cosine, sine), from this pass's first position on */
    /* Keys and values by (layer, key or value, group or row, kv head), strides in floats; tokens head_dim apart. */
    const float *shared;
    int64_t shared_layer, shared_pair, shared_group, shared_head;
    float *own;
    int64_t own_layer, own_pair, own_row, own_head;
    float *logits; /* [rows][codes], after each row's last token */
} Pass;

/* Activations, one token row after the other, `*_row` floats apart: 16 more than the width, since rows a multiple of
 * 4 KiB apart would compete for the same few lines of the first cache. Padding rows and columns are zero. */
typedef struct {
    float *x, *qkv, *attended, *act, *last;
    int64_t x_row, qkv_row, act_row;
} Buffers;

/* One thread's scratch. */
typedef struct {
    float *queries; /* [head_dim][8] queries of an attention block, one per lane */
    float *tail;    /* [8][head_dim] the prefix's last keys, padded to eight */
    float *output;  /* [8][head_dim] sums of the prefix's weighted values */
    float *shared;  /* [prefix][8] scores, then weights, one query per lane */
    float *own;     /* [length + chunk, padded to eight] scores, then weights of one query */
    float *scale;   /* [M] factor of each row's RMS norm */
    int64_t scaled; /* the stage that those factors are of */
} __attribute__((aligned(64))) Scratch; /* no two threads write to one line of the cache */

/* out[TILE][PANEL] = TILE rows of x (x_row apart, `depth` long) times one panel. Each weight is read once and used TILE
 * times; each output has its own accumulator, which runs over `depth` in order. */
INLINE void tile(const float *x, int64_t x_row, const float *panel, int64_t depth, float *out) {
    wide sums[TILE][2];
    memset(sums, 0, sizeof sums);
    for (int64_t k = 0; k < depth; k++, panel += PANEL) {
        wide left = *(const wide *)panel, right = *(const wide *)(panel + LANES);
#pragma GCC unroll 8
        for (int r = 0; r < TILE; r++) {
            sums[r][0] += left * x[r * x_row + k];
            sums[r][1] += right * x[r * x_row + k];
        }
    }
    memcpy(out, sums, sizeof sums);
}

/* out[8][8] likewise for attention: row r, place k of x at x[r * x_row + k * x_step]; columns at w[k * w_step]. */
INLINE void small_tile(const float *x, int64_t x_row, int64_t x_step, const float *w, int64_t w_step, int64_t depth,
                       eight *out) {
    eight sums[EIGHT];
    memset(sums, 0, sizeof sums);
    for (int64_t k = 0; k < depth; k++, x += x_step, w += w_step) {
        eight columns = load(w);
#pragma GCC unroll 8
        for (int r = 0; r < EIGHT; r++) sums[r] += columns * x[r * x_row];
    }
    memcpy(out, sums, sizeof sums);
}

/* What becomes of a tile's rows: y = scale * product, y += product, or y = silu(scale * gate) * (scale * up). */
enum { STORE, ADD, GATE };

INLINE void finish(int what, const float *product, float scale, float *y, int64_t columns) {
    int64_t j = 0;
    if (what == GATE) {
        for (; j < LANES; j += EIGHT) {
            eight gate = load(product + j) * scale, up = load(product + LANES + j) * scale;
            store(y + j, up * gate / (exponential(-gate) + 1.0f));
        }
        return;
    }
    for (; j + EIGHT <= columns; j += EIGHT)
        store(y + j, what == ADD ? load(y + j) + load(product + j) : load(product + j) * scale);
    for (; j < columns; j++) y[j] = what == ADD ? y[j] + product[j] : product[j] * scale; /* the logits' last columns */
}

/* Panels [first, last) of y = x times a matrix. Panels outside, rows inside: a panel stays in the cache until all rows
 * had it. Rows are computed in whole tiles and written up to `rows`. */
INLINE void product(int what, const float *panels, int64_t depth, int64_t columns, const float *x, int64_t x_row,
                    int64_t rows, const float *scale, float *y, int64_t y_row, int64_t first, int64_t last) {
    float out[TILE * PANEL];
    int64_t step = what == GATE ? LANES : PANEL;
    for (int64_t p = first; p < last; p++) {
        int64_t width = columns - p * PANEL < PANEL ? columns - p * PANEL : PANEL;
        for (int64_t row = 0; row < rows; row += TILE) {
            tile(x + row * x_row, x_row, panels + p * depth * PANEL, depth, out);
            for (int64_t r = 0; r < TILE && row + r < rows; r++)
                finish(what, out + r * PANEL, scale ? scale[row + r] : 1.0f, y + (row + r) * y_row + p * step, width);
        }
    }
}

/* 1 / sqrt(sum of squares + floor) of every row, into this thread's scratch: cheaper than sharing it behind a barrier.
 * Four accumulators; `width` counts the zeros up to a whole panel. */
static void norm_scales(const float *x, int64_t x_row, int64_t rows, int64_t width, double floor, float *scale) {
    for (int64_t row = 0; row < rows; row++, x += x_row) {
        eight sums[2] = {{0}, {0}};
        for (int64_t i = 0; i < width; i += 2 * EIGHT) {
            sums[0] += load(x + i) * load(x + i);
            sums[1] += load(x + i + EIGHT) * load(x + i + EIGHT);
        }
        scale[row] = 1.0f / sqrtf(sum(sums[0] + sums[1]) + (float)floor);
    }
}

/* Turn a token row's queries in place; turn its keys into the cache and copy its values there. */
static void rotate_and_write(const Model *model, const Pass *pass, const Buffers *b, int64_t layer, int64_t index) {
    int64_t d = model->head_dim, row = index / pass->chunk, token = index % pass->chunk;
    const float *phases = pass->phases + token * d;
    float *heads = b->qkv + index * b->qkv_row;
    float *keys = pass->own + layer * pass->own_layer + row * pass->own_row + (pass->length + token) * d;
    for (int64_t h = 0; h < model->heads + model->kv_heads; h++, heads += d) {
        float *to = h < model->heads ? heads : keys + (h - model->heads) * pass->own_head;
        for (int64_t i = 0; i < d; i += 2) {
            float real = heads[i] * phases[i] - heads[i + 1] * phases[i + 1];
            float imaginary = heads[i] * phases[i + 1] + heads[i + 1] * phases[i];
            to[i] = real, to[i + 1] = imaginary;
        }
    }
    for (int64_t h = 0; h < model->kv_heads; h++, heads += d)
        memcpy(keys + pass->own_pair + h * pass->own_head, heads, d * sizeof(float));
}

/* The shared prefix for eight queries at once, so that its keys and values are read once for eight samples. Queries sit
 * in lanes, so the softmax needs no sum across a vector. Leaves largest scores and sums of weights by lane, and the
 * weighted sums of values in s->output. */
static void attend_prefix(const float *keys, const float *values, int64_t prefix, int64_t d, Scratch *s, eight *largest,
                          eight *total) {
    eight out[EIGHT];
    *largest = all(-1e30f), *total = all(0);
    for (int64_t k = 0; k < prefix; k += EIGHT) {
        int64_t count = prefix - k < EIGHT ? prefix - k : EIGHT;
        const float *block = keys + k * d;
        if (count < EIGHT) block = memcpy(s->tail, block, count * d * sizeof(float));
        small_tile(block, d, 1, s->queries, EIGHT, d, out);
        for (int64_t r = 0; r < count; r++) {
            store(s->shared + (k + r) * EIGHT, out[r]);
            *largest = larger(*largest, out[r]);
        }
    }
    for (int64_t k = 0; k < prefix; k++) {
        eight weight = exponential(load(s->shared + k * EIGHT) - *largest);
        store(s->shared + k * EIGHT, weight);
        *total += weight;
    }
    for (int64_t c = 0; c < d; c += EIGHT) {
        small_tile(s->shared, 1, EIGHT, values + c, d, prefix, out);
        for (int r = 0; r < EIGHT; r++) store(s->output + r * d + c, out[r]);
    }
}

/* to = scale * (factor * start + the weighted values of `count` tokens), n vectors wide. Even and odd tokens have an
 * accumulator each, since one would wait for itself. */
INLINE void weighted_values(int n, const float *weights, const float *values, int64_t count, int64_t d, float scale,
                            const float *start, float factor, float *to) {
    eight sums[2][4];
    int64_t k = 0;
    memset(sums, 0, sizeof sums);
    for (; k + 2 <= count; k += 2, values += 2 * d) {
#pragma GCC unroll 4
        for (int j = 0; j < n; j++) {
            sums[0][j] += load(values + j * EIGHT) * weights[k];
            sums[1][j] += load(values + d + j * EIGHT) * weights[k + 1];
        }
    }
    if (k < count)
        for (int j = 0; j < n; j++) sums[0][j] += load(values + j * EIGHT) * weights[k];
    for (int j = 0; j < n; j++)
        store(to + j * EIGHT, (sums[0][j] + sums[1][j] + load(start + j * EIGHT) * factor) * scale);
}

/* One query over its row's own `count` tokens, merged with the prefix's part by rescaling both to the larger of the two
 * largest scores: exactly the softmax over all keys. */
static void attend_own(const float *query, const float *keys, const float *values, int64_t count, int64_t d, Scratch *s,
                       float largest, float total, const float *output, float *to) {
    eight top = all(largest);
    for (int64_t k = 0; k < count; k++) {
        eight dot = {0};
        for (int64_t i = 0; i < d; i += EIGHT) dot += load(query + i) * load(keys + k * d + i);
        s->own[k] = sum(dot);
    }
    for (int64_t k = count; k < up_to(count, EIGHT); k++) s->own[k] = -1e30f;
    for (int64_t k = 0; k < count; k += EIGHT) top = larger(top, load(s->own + k));
    for (int j = 0; j < EIGHT; j++) top = larger(top, all(top[j]));
    eight weights = {0}, factor = exponential(all(largest) - top);
    for (int64_t k = 0; k < count; k += EIGHT) {
        eight weight = exponential(load(s->own + k) - top);
        store(s->own + k, weight);
        for (int64_t j = count - k; j < EIGHT; j++) weight[j] = 0;
        weights += weight;
    }
    float scale = 1.0f / (sum(weights) + total * factor[0]);
    int64_t c = 0;
    for (; c + 4 * EIGHT <= d; c += 4 * EIGHT)
        weighted_values(4, s->own, values + c, count, d, scale, output + c, factor[0], to + c);
    for (; c < d; c += EIGHT)
        weighted_values(1, s->own, values + c, count, d, scale, output + c, factor[0], to + c);
}

/* Eight queries (or what is left of them) that share a group and a kv head. The last `asking` tokens of each row have
 * queries. A group's are numbered by sample, token, head; items by group, kv head, block of queries: a head's prefix
 * stays in the cache from block to block. */
static void attend(const Model *model, const Pass *pass, const Buffers *b, Scratch *s, int64_t layer, int64_t item,
                   int64_t blocks, int64_t asking) {
    int64_t d = model->head_dim, repeat = model->heads / model->kv_heads, block = item % blocks;
    int64_t kv = item / blocks % model->kv_heads, group = item / blocks / model->kv_heads;
    int64_t count = pass->samples * asking * repeat - block * EIGHT;
    int64_t asker[EIGHT], token[EIGHT], head[EIGHT]; /* of each query: its number among the tokens that ask; place */
    const float *query[EIGHT];
    if (count > EIGHT) count = EIGHT;
    for (int64_t q = 0; q < count; q++) {
        asker[q] = group * pass->samples * asking + (block * EIGHT + q) / repeat;
        token[q] = pass->chunk - asking + asker[q] % asking;
        head[q] = kv * repeat + (block * EIGHT + q) % repeat;
        query[q] = b->qkv + (asker[q] / asking * pass->chunk + token[q]) * b->qkv_row + head[q] * d;
    }
    eight largest = all(-1e30f), total = all(0);
    if (pass->prefix) {
        const float *keys = pass->shared + layer * pass->shared_layer + group * pass->shared_group;
        for (int64_t i = 0; i < d; i++)
            for (int64_t q = 0; q < EIGHT; q++) s->queries[i * EIGHT + q] = q < count ? query[q][i] : 0;
        keys += kv * pass->shared_head;
        attend_prefix(keys, keys + pass->shared_pair, pass->prefix, d, s, &largest, &total);
    }
    for (int64_t q = 0; q < count; q++) {
        int64_t row = asker[q] / asking, tokens = pass->length + token[q] + 1;
        const float *keys = pass->own + layer * pass->own_layer + row * pass->own_row + kv * pass->own_head;
        attend_own(query[q], keys, keys + pass->own_pair, tokens, d, s, largest[q], total[q], s->output + q * d,
                   b->attended + asker[q] * b->x_row + head[q] * d);
    }
}

/* A layer's stages. After the last layer comes one more, the head. */
enum { QKV, ROTATE, ATTEND, OUT, GATE_UP, DOWN, STAGES };

/* One pass as `team.h` sees it. */
typedef struct {
    const Model *model;
    const Pass *pass;
    Buffers b;
    Scratch *scratch; /* by thread */
} Job;

/* What a stage works on: in the last layer only each row's last token goes on from its attention. */
typedef struct {
    int64_t layer, what, rows, asking; /* token rows, padded; tokens of each row that go on */
    float *x;
} Stage;

static Stage stage_at(const Job *job, int64_t index) {
    const Model *model = job->model;
    const Pass *pass = job->pass;
    Stage stage = {index / STAGES, index % STAGES, up_to(pass->rows * pass->chunk, ROWS), pass->chunk, job->b.x};
    if (pass->chunk > 1 && index >= (model->layers - 1) * STAGES + ATTEND)
        stage.rows = up_to(pass->rows, ROWS), stage.asking = 1, stage.x = job->b.last;
    return stage;
}

static int64_t panels(int64_t columns) { return up_to(columns, PANEL) / PANEL; }

static int64_t qkv_width(const Model *model) { return (model->heads + 2 * model->kv_heads) * model->head_dim; }

/* Blocks of eight queries per group and kv head. */
static int64_t blocks(const Model *model, const Pass *pass, int64_t asking) {
    return up_to(pass->samples * asking * model->heads / model->kv_heads, EIGHT) / EIGHT;
}

/* Items of a stage: panels of outputs, token rows, or blocks of queries. */
static int64_t items(void *of, int64_t index) {
    const Job *job = of;
    const Model *model = job->model;
    const Pass *pass = job->pass;
    Stage stage = stage_at(job, index);
    if (stage.layer == model->layers) return panels(model->codes);
    switch (stage.what) {
    case QKV: return panels(qkv_width(model));
    case ROTATE: return pass->rows * pass->chunk;
    case ATTEND: return pass->rows / pass->samples * model->kv_heads * blocks(model, pass, stage.asking);
    case GATE_UP: return panels(2 * up_to(model->ffn, LANES));
    default: return panels(model->hidden);
    }
}

/* The factors of the norm before a product, once per thread and stage: cheaper than sharing them behind a wait. */
static const float *scales(const Job *job, Stage stage, int64_t index, Scratch *s) {
    const Model *model = job->model;
    if (s->scaled != index)
        norm_scales(stage.x, job->b.x_row, stage.rows, up_to(model->hidden, PANEL), model->floor, s->scale);
    s->scaled = index;
    return s->scale;
}

/* Items [first, last) of a stage. */
static void work(void *of, int64_t index, int64_t first, int64_t last, int thread) {
    const Job *job = of;
    const Model *model = job->model;
    const Pass *pass = job->pass;
    const Buffers *b = &job->b;
    Scratch *s = &job->scratch[thread];
    Stage stage = stage_at(job, index);
    int64_t hidden = model->hidden, rows = stage.rows, kinds, tokens = pass->chunk;
    float *x = stage.x;
    if (stage.layer == model->layers) {
        product(STORE, model->head, hidden, model->codes, x, b->x_row, pass->rows, scales(job, stage, index, s),
                pass->logits, model->codes, first, last);
        return;
    }
    const Layer *w = &model->layer[stage.layer];
    switch (stage.what) {
    case QKV:
        product(STORE, w->qkv, hidden, qkv_width(model), x, b->x_row, rows, scales(job, stage, index, s), b->qkv,
                b->qkv_row, first, last);
        break;
    case ROTATE:
        for (int64_t i = first; i < last; i++) {
            rotate_and_write(model, pass, b, stage.layer, i);
            if (stage.layer == model->layers - 1 && tokens > 1 && i % tokens == tokens - 1)
                memcpy(b->last + i / tokens * b->x_row, b->x + i * b->x_row, hidden * sizeof(float));
        }
        break;
    case ATTEND:
        kinds = blocks(model, pass, stage.asking);
        for (int64_t i = first; i < last; i++) attend(model, pass, b, s, stage.layer, i, kinds, stage.asking);
        break;
    case OUT:
        product(ADD, w->out, hidden, hidden, b->attended, b->x_row, rows, NULL, x, b->x_row, first, last);
        break;
    case GATE_UP:
        product(GATE, w->gate_up, hidden, 2 * up_to(model->ffn, LANES), x, b->x_row, rows, scales(job, stage, index, s),
                b->act, b->act_row, first, last);
        break;
    case DOWN:
        product(ADD, w->down, model->ffn, hidden, b->act, b->act_row, rows, NULL, x, b->x_row, first, last);
    }
}

/* Outputs per panel: what the weights must be packed for. */
int64_t panel_width(void) { return PANEL; }

/* Cut a thread's scratch out of memory of `scratch_size` floats. */
static Scratch scratch_at(const Model *model, const Pass *pass, float *at) {
    int64_t d = model->head_dim;
    Scratch s = {.queries = at, .tail = at + EIGHT * d, .output = at + 2 * EIGHT * d, .shared = at + 3 * EIGHT * d};
    s.own = s.shared + EIGHT * pass->prefix;
    s.scale = s.own + up_to(pass->length + pass->chunk, EIGHT);
    s.scaled = -1;
    return s;
}

/* Run one pass. Returns 0, 1 where an id lies outside the vocabulary, or 2 where memory is short. */
int64_t forward(const Model *model, const Pass *pass) {
    int64_t tokens = pass->rows * pass->chunk, rows = up_to(tokens, ROWS), last = up_to(pass->rows, ROWS);
    int64_t threads = pass->threads < MOST_THREADS ? pass->threads : MOST_THREADS;
    Job job = {.model = model, .pass = pass};
    Buffers *b = &job.b;
    for (int64_t i = 0; i < tokens; i++)
        if (pass->ids[i] < 0 || pass->ids[i] >= model->vocabulary) return 1;
    b->x_row = up_to(model->hidden, PANEL) + 16;
    b->qkv_row = up_to(qkv_width(model), PANEL) + 16;
    b->act_row = up_to(model->ffn, PANEL) + 16;
    int64_t own = up_to(pass->length + pass->chunk, EIGHT);
    int64_t each = EIGHT * (3 * model->head_dim + pass->prefix) + own + rows;
    each = up_to(each, 16) + 16; /* whole lines of the cache */
    int64_t floats = rows * (2 * b->x_row + b->qkv_row + b->act_row) + last * b->x_row + threads * each;
    Scratch scratch[MOST_THREADS];
    float *memory = tokens * model->heads <= MOST_ITEMS ? calloc(floats, sizeof(float)) : NULL;
    if (!memory) return 2;
    b->x = memory;
    b->attended = b->x + rows * b->x_row;
    b->qkv = b->attended + rows * b->x_row;
    b->act = b->qkv + rows * b->qkv_row;
    b->last = b->act + rows * b->act_row;
    for (int64_t t = 0; t < threads; t++)
        scratch[t] = scratch_at(model, pass, b->last + last * b->x_row + t * each);
    job.scratch = scratch;
    for (int64_t i = 0; i < tokens; i++)
        memcpy(b->x + i * b->x_row, model->embedding + pass->ids[i] * model->hidden, model->hidden * sizeof(float));
    Plan plan = {model->layers * STAGES + 1, items, work};
    run_together(&plan, &job, threads);
    free(memory);
    return 0;
}
