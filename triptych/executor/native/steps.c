/* What a step of a transformer is made of, for one core: float32 in, float32 out.
 *
 * A step is a list of operations that is walked here, so that a small model's step costs its
 * arithmetic and not its calls. A row's numbers are the same bits whatever its neighbours are: every
 * sum has one order. Each operation's specification is its twin of plain PyTorch, the methods of
 * `operations.Plain`. Knows pointers and sizes, which its caller has checked.
 */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if !defined(LANES) && defined(__AVX512F__)
#define LANES 16
#elif !defined(LANES)
#define LANES 8 /* two registers of NEON or SSE where there is nothing wider */
#endif
#define PANEL (2 * LANES) /* columns of a product's weights that lie side by side */

#define MOST_ROWS 4 /* of a sequence that are computed together with the same keys */
#define SPAN 128    /* keys that a row meets at once; spans begin at its multiples */
#define LINE (SPAN + LANES)

typedef float Vec __attribute__((vector_size(4 * LANES)));
typedef int32_t Int __attribute__((vector_size(4 * LANES)));
typedef float Loose __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
#define INLINE static inline __attribute__((always_inline))

enum { PRODUCT, NORM, SILU_MUL, EMBED, ANGLES, WRITE, ATTEND, ATTEND_TILES };

/* What the fields mean stands with the operation that reads them. */
typedef struct {
    int32_t kind, rows, width, inner;
    int32_t heads, kv_heads, head_dim, block_size;
    int64_t block_stride;
    const void *a, *b, *c, *d;
    void *out;
    float number;
} Operation;

INLINE Vec load(const float *from) { return *(const Loose *)from; }
INLINE void store(float *to, Vec value) { *(Loose *)to = value; }
INLINE Vec fill(float value) { return value - (Vec){0}; }

/* The numbers from `at` on of a row of `width`; zeros behind its end, and for no row. */
INLINE Vec some(const float *row, int at, int width) {
    if (!row || at >= width) return (Vec){0};
    if (width - at >= LANES) return load(row + at);
    float held[LANES] = {0};
    memcpy(held, row + at, sizeof(float) * (width - at));
    return load(held);
}

INLINE void keep(float *row, int at, int width, Vec value) {
    if (width - at >= LANES) store(row + at, value);
    else if (at < width) memcpy(row + at, &value, sizeof(float) * (width - at));
}

#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLED(v, ...) __builtin_shufflevector(v, v, __VA_ARGS__)
#define MERGED(v, w, ...) __builtin_shufflevector(v, w, __VA_ARGS__)
#else
#define SHUFFLED(v, ...) __builtin_shuffle(v, (Int){__VA_ARGS__})
#define MERGED(v, w, ...) __builtin_shuffle(v, w, (Int){__VA_ARGS__})
#endif

INLINE float sum(Vec v) {
#if LANES == 16
    v += SHUFFLED(v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
    v += SHUFFLED(v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
    v += SHUFFLED(v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
#else
    v += SHUFFLED(v, 4, 5, 6, 7, 0, 1, 2, 3);
    v += SHUFFLED(v, 2, 3, 0, 1, 6, 7, 4, 5);
#endif
    return v[0] + v[1];
}

INLINE Vec choose(Int mask, Vec yes, Vec no) { return (Vec)(((Int)yes & mask) | ((Int)no & ~mask)); }

/* e^x: 2^n times a polynomial on [-ln2 / 2, ln2 / 2] (Cephes' expf), within 2 units of the last
 * place; 0 below -87, as for -inf, and never above e^88. */
INLINE Vec exponential(Vec x) {
    Int is_small = x < fill(-87.0f);
    x = choose(is_small, fill(-87.0f), x);
    x = choose(x > fill(88.0f), fill(88.0f), x);
    Vec shifted = x * 1.44269504088896341f + 12582912.0f; /* 1.5 * 2^23: fractions are rounded off */
    Vec n = shifted - 12582912.0f;
    Vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
    Vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    Int power = ((Int)shifted - (Int)fill(12582912.0f) + 127) << 23;
    return choose(is_small, (Vec){0}, p * (Vec)power);
}

/* A tile of ROWS rows and PANELS panels of a product: all its sums stay in registers, where the loops
 * over them are unrolled. */
#define ALL(I, COUNT) _Pragma("GCC unroll 16") for (int I = 0; I < (COUNT); I++)
#define TILE(ROWS, PANELS)                                                                         \
    static void tile_##ROWS##_##PANELS(const float *x, const float *weights, const float *bias,    \
                                       float *out, int inner, int width, int column) {             \
        Vec sums[ROWS][PANELS * 2];                                                                \
        ALL(r, ROWS) ALL(v, PANELS * 2) sums[r][v] = some(bias, column + v * LANES, width);        \
        for (int64_t k = 0; k < inner; k++) {                                                      \
            Vec w[PANELS * 2];                                                                     \
            __builtin_prefetch(weights + (PANELS * (int64_t)inner + k) * PANEL, 0, 2);             \
            ALL(v, PANELS * 2)                                                                     \
            w[v] = load(weights + (v / 2 * (int64_t)inner + k) * PANEL + v % 2 * LANES);           \
            ALL(r, ROWS) ALL(v, PANELS * 2) sums[r][v] += x[r * (int64_t)inner + k] * w[v];        \
        }                                                                                          \
        ALL(r, ROWS) ALL(v, PANELS * 2)                                                            \
        keep(out + r * (int64_t)width, column + v * LANES, width, sums[r][v]);                     \
    }

typedef void Tile(const float *, const float *, const float *, float *, int, int, int);
TILE(1, 1)
TILE(2, 1)
TILE(3, 1)
TILE(4, 1)
TILE(5, 1)
TILE(6, 1)
TILE(1, 4)
TILE(2, 2)
static Tile *const TILES[] = {tile_1_1, tile_2_1, tile_3_1, tile_4_1, tile_5_1, tile_6_1};

/* out (rows, width) = a (rows, inner) times weights b, (panels, inner, PANEL), plus bias c. Tiles of
 * a few rows take more panels: an addition waits for the last, so eight sums have to be under way. */
static void product(const Operation *op) {
    int width = op->width, inner = op->inner, rows = op->rows, panels;
    for (int column = 0; column < width; column += panels * PANEL) {
        const float *x = op->a, *weights = (const float *)op->b + (int64_t)column * inner;
        float *out = op->out;
        panels = rows == 1 ? 4 : rows == 2 ? 2 : 1;
        if (panels > 1 && column + panels * PANEL <= width) {
            (rows == 1 ? tile_1_4 : tile_2_2)(x, weights, op->c, out, inner, width, column);
            continue;
        }
        panels = 1;
        int tiles = (rows + 5) / 6;
        for (int tile = 0, row = 0; tile < tiles; tile++) {
            int size = (rows - row + tiles - tile - 1) / (tiles - tile);
            TILES[size - 1](x + (int64_t)row * inner, weights, op->c, out + (int64_t)row * width,
                            inner, width, column);
            row += size;
        }
    }
}

/* out (rows, width) = RMSNorm of a with weights b and epsilon `number`; a += c first, if given. */
static void norm(const Operation *op) {
    int width = op->width;
    for (int64_t row = 0; row < op->rows; row++) {
        float *x = (float *)op->a + row * width, *out = (float *)op->out + row * width;
        const float *delta = op->c ? (const float *)op->c + row * width : 0;
        Vec squares = {0};
        for (int i = 0; i < width; i += LANES) {
            Vec v = some(x, i, width);
            if (delta) keep(x, i, width, v += some(delta, i, width));
            squares += v * v;
        }
        float scale = 1.0f / sqrtf(sum(squares) / width + op->number);
        for (int i = 0; i < width; i += LANES)
            keep(out, i, width, some(x, i, width) * scale * some(op->b, i, width));
    }
}

/* out (rows, width) = silu of the left half of a (rows, 2 width) times the right half. */
static void silu_mul(const Operation *op) {
    int width = op->width;
    for (int64_t row = 0; row < op->rows; row++) {
        const float *gate = (const float *)op->a + row * 2 * width, *up = gate + width;
        float *out = (float *)op->out + row * width;
        for (int i = 0; i < width; i += LANES) {
            Vec g = some(gate, i, width);
            keep(out, i, width, g / (exponential(-g) + 1.0f) * some(up, i, width));
        }
    }
}

/* out (rows, width) = rows of the table b, (panels, width, PANEL), that the tokens a (int64) name. */
static void embed(const Operation *op) {
    for (int64_t row = 0; row < op->rows; row++) {
        int64_t token = ((const int64_t *)op->a)[row];
        const float *from = (const float *)op->b + token / PANEL * op->width * PANEL + token % PANEL;
        for (int64_t i = 0; i < op->width; i++)
            ((float *)op->out)[row * op->width + i] = from[i * PANEL];
    }
}

/* Cosines out and sines d (rows, width) of positions a (int64, three lines of `inner`) times
 * frequencies b; c (int64) names the line of each. */
static void angles(const Operation *op) {
    const int64_t *positions = op->a, *lines = op->c;
    const float *frequencies = op->b;
    for (int64_t row = 0; row < op->rows; row++)
        for (int i = 0; i < op->width; i++) {
            float angle = (float)positions[lines[i] * op->inner + row] * frequencies[i];
            ((float *)op->out)[row * op->width + i] = cosf(angle);
            ((float *)op->d)[row * op->width + i] = sinf(angle);
        }
}

/* Turn queries and keys of a (rows, heads + 2 kv_heads, head_dim), in place, by cosines b and sines
 * c (rows, head_dim / 2); keys and values go to a layer's memory `out`, the keys to the number d
 * (int64) of it, unless that is negative. */
static void write(const Operation *op) {
    int size = op->head_dim, half = size / 2, turned = op->heads + op->kv_heads;
    size_t run = (size_t)op->kv_heads * size;
    for (int64_t row = 0; row < op->rows; row++) {
        float *x = (float *)op->a + row * (turned + op->kv_heads) * size;
        const float *cosines = (const float *)op->b + row * half;
        const float *sines = (const float *)op->c + row * half;
        for (int head = 0; head < turned; head++) {
            float *left = x + head * size, *right = left + half;
            for (int i = 0; i < half; i++) {
                float l = left[i], r = right[i];
                left[i] = l * cosines[i] - r * sines[i];
                right[i] = r * cosines[i] + l * sines[i];
            }
        }
        int64_t place = ((const int64_t *)op->d)[row];
        if (place < 0) continue;
        float *keys = (float *)op->out + place;
        memcpy(keys, x + op->heads * size, run * sizeof(float));
        memcpy(keys + op->block_size * run, x + turned * size, run * sizeof(float));
    }
}

/* One head of one row while it attends: what it has met so far. */
typedef struct {
    const float *query;
    float *out;
    int64_t sees; /* tokens */
    float most, total;
} Row;

/* LANES vectors to their LANES sums, each added up in the order of `sum`. */
INLINE Vec sums_of(Vec v[LANES]) {
#if LANES == 16
    ALL(i, 8)
    v[i] = MERGED(v[2 * i], v[2 * i + 1], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
           MERGED(v[2 * i], v[2 * i + 1], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    ALL(i, 4)
    v[i] = MERGED(v[2 * i], v[2 * i + 1], 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
           MERGED(v[2 * i], v[2 * i + 1], 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
    ALL(i, 2)
    v[i] = MERGED(v[2 * i], v[2 * i + 1], 0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29) +
           MERGED(v[2 * i], v[2 * i + 1], 2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23, 26, 27, 30, 31);
    return MERGED(v[0], v[1], 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30) +
           MERGED(v[0], v[1], 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
#else
    ALL(i, 4)
    v[i] = MERGED(v[2 * i], v[2 * i + 1], 0, 1, 2, 3, 8, 9, 10, 11) +
           MERGED(v[2 * i], v[2 * i + 1], 4, 5, 6, 7, 12, 13, 14, 15);
    ALL(i, 2)
    v[i] = MERGED(v[2 * i], v[2 * i + 1], 0, 1, 4, 5, 8, 9, 12, 13) +
           MERGED(v[2 * i], v[2 * i + 1], 2, 3, 6, 7, 10, 11, 14, 15);
    return MERGED(v[0], v[1], 0, 2, 4, 6, 8, 10, 12, 14) +
           MERGED(v[0], v[1], 1, 3, 5, 7, 9, 11, 13, 15);
#endif
}

/* Scores of ROWS rows for `count` keys, `run` numbers apart: LANES at a time, KEYS of them side by
 * side; each in one order whatever these are. Rows' lines are LINE numbers apart. */
#define SCORE(ROWS, KEYS)                                                                          \
    static void score_##ROWS(const Row *rows, const float *keys, int64_t run, int count, int size, \
                             float scale, float *scores) {                                         \
        for (int t = 0; t < count; t += LANES / ROWS) {                                            \
            int some = count - t < LANES / ROWS ? count - t : LANES / ROWS;                        \
            Vec dots[LANES] = {{0}};                                                               \
            ALL(part, LANES / ROWS / KEYS) {                                                       \
                const float *key[KEYS];                                                            \
                if (part * KEYS >= some) break;                                                    \
                ALL(k, KEYS) key[k] = keys + (t + (part * KEYS + k < some ? part * KEYS + k : 0)) * run; \
                for (int i = 0; i < size; i += LANES) {                                            \
                    Vec q[ROWS];                                                                   \
                    ALL(r, ROWS) q[r] = load(rows[r].query + i);                                   \
                    ALL(k, KEYS) {                                                                 \
                        Vec one = load(key[k] + i);                                                \
                        ALL(r, ROWS) dots[r * (LANES / ROWS) + part * KEYS + k] += q[r] * one;     \
                    }                                                                              \
                }                                                                                  \
            }                                                                                      \
            Vec sums = sums_of(dots) * scale;                                                      \
            if (some == LANES / ROWS) {                                                            \
                ALL(r, ROWS)                                                                       \
                memcpy(scores + r * LINE + t, (float *)&sums + r * (LANES / ROWS),                 \
                       sizeof(float) * (LANES / ROWS));                                            \
            } else                                                                                 \
                for (int r = 0; r < ROWS; r++)                                                     \
                    for (int k = 0; k < some; k++)                                                 \
                        scores[r * LINE + t + k] = sums[r * (LANES / ROWS) + k];                   \
        }                                                                                          \
    }

/* What `count` values, weighed, add to the outputs of ROWS rows; VECTORS of an output at a time. */
#define WEIGH(ROWS, VECTORS)                                                                       \
    INLINE void weigh_##ROWS##_##VECTORS(const Row *rows, const float *values, int64_t run,        \
                                         int count, int at, const float *weights) {                \
        Vec sums[ROWS][VECTORS];                                                                   \
        ALL(r, ROWS) ALL(v, VECTORS) sums[r][v] = load(rows[r].out + at + v * LANES);              \
        for (int t = 0; t < count; t++) {                                                          \
            Vec value[VECTORS];                                                                    \
            ALL(v, VECTORS) value[v] = load(values + t * run + at + v * LANES);                    \
            ALL(r, ROWS) ALL(v, VECTORS) sums[r][v] += weights[r * LINE + t] * value[v];           \
        }                                                                                          \
        ALL(r, ROWS) ALL(v, VECTORS) store(rows[r].out + at + v * LANES, sums[r][v]);              \
    }
#define WEIGH_ALL(ROWS, MOST, LESS)                                                                \
    static void weigh_##ROWS(const Row *rows, const float *values, int64_t run, int count,         \
                             int size, const float *weights) {                                     \
        int at = 0;                                                                                \
        for (; size - at >= MOST * LANES; at += MOST * LANES)                                      \
            weigh_##ROWS##_##MOST(rows, values, run, count, at, weights);                          \
        for (; size - at >= LESS * LANES; at += LESS * LANES)                                      \
            weigh_##ROWS##_##LESS(rows, values, run, count, at, weights);                          \
        for (; at < size; at += LANES) weigh_##ROWS##_1(rows, values, run, count, at, weights);    \
    }

SCORE(1, 4)
SCORE(2, 4)
WEIGH(1, 8)
WEIGH(1, 4)
WEIGH(1, 1)
WEIGH(2, 4)
WEIGH(2, 2)
WEIGH(2, 1)
WEIGH(4, 2)
WEIGH(4, 1)
WEIGH_ALL(1, 8, 4)
WEIGH_ALL(2, 4, 2)
#if LANES == 16
SCORE(4, 4)
WEIGH(4, 4)
WEIGH_ALL(4, 4, 2)
#else
SCORE(4, 2)
WEIGH_ALL(4, 2, 1)
#endif

/* Softmax goes on (FlashAttention, arXiv 2205.14135, algorithm 1): `count` scores become weights
 * under the greatest score so far, and what the row has is faded to it. LANES numbers behind them
 * are written too. */
INLINE void soften(Row *row, float *scores, int count, int size) {
    Vec most = fill(row->most), total = {0};
    store(scores + count, fill(-INFINITY));
    for (int i = 0; i < count; i += LANES) {
        Vec v = load(scores + i);
        most = choose(v > most, v, most);
    }
    float best = most[0];
    for (int i = 1; i < LANES; i++) best = most[i] > best ? most[i] : best;
    for (int i = 0; i < count; i += LANES) {
        Vec v = exponential(load(scores + i) - best);
        store(scores + i, v);
        total += v;
    }
    float faded = exponential(fill(row->most - best))[0];
    if (faded != 1.0f)
        for (int i = 0; i < size; i += LANES) store(row->out + i, load(row->out + i) * faded);
    row->total = row->total * faded + sum(total);
    row->most = best;
}

/* How many of the tokens from `token` to `end` a row sees. */
INLINE int seen(const Row *row, int64_t token, int64_t end) {
    int64_t count = (row->sees < end ? row->sees : end) - token;
    return count > 0 ? (int)count : 0;
}

/* Up to MOST_ROWS rows meet the keys of tokens [token, end), at most SPAN, of one KV head: where all
 * see a key they are computed together. */
static void meet(const Operation *op, const int32_t *table, int kv_head, Row *rows, int count,
                 int64_t token, int64_t end) {
    float scores[MOST_ROWS * LINE];
    int64_t run = (int64_t)op->kv_heads * op->head_dim, size = op->head_dim, least = end;
    for (int r = 0; r < count; r++) least = rows[r].sees < least ? rows[r].sees : least;
    for (int is_value = 0; is_value < 2; is_value++) {
        for (int64_t at = token, next; at < end; at = next) {
            next = (at / op->block_size + 1) * op->block_size;
            next = next < end ? next : end;
            const float *from = (const float *)op->b + table[at / op->block_size] * op->block_stride +
                                (at % op->block_size + is_value * op->block_size) * run +
                                kv_head * size;
            int64_t all = least > at ? (least < next ? least : next) - at : 0;
            for (int r = 0, together; r < count; r += together) {
                together = count - r >= MOST_ROWS ? MOST_ROWS : count - r >= 2 ? 2 : 1;
                float *line = scores + r * LINE + (at - token);
                if (is_value)
                    (together == 4 ? weigh_4 : together == 2 ? weigh_2 : weigh_1)(
                        rows + r, from, run, (int)all, (int)size, line);
                else
                    (together == 4 ? score_4 : together == 2 ? score_2 : score_1)(
                        rows + r, from, run, (int)all, (int)size, op->number, line);
            }
            for (int r = 0; r < count; r++) {
                int more = seen(rows + r, at + all, next);
                float *line = scores + r * LINE + (at + all - token);
                if (more && is_value) weigh_1(rows + r, from + all * run, run, more, size, line);
                else if (more) score_1(rows + r, from + all * run, run, more, size, op->number, line);
            }
        }
        for (int r = 0; r < count && !is_value; r++)
            if (seen(rows + r, token, end))
                soften(rows + r, scores + r * LINE, seen(rows + r, token, end), size);
    }
}

/* Rows of some tokens of a sequence meet [token, end), span by span: `count` of each of `kv_heads` KV
 * heads from `kv_head` on, one behind the other, so that a span's memory is fetched for all heads. */
static void meet_all(const Operation *op, const int32_t *table, int kv_head, int kv_heads, Row *rows,
                     int count, int64_t token, int64_t end) {
    for (int64_t next; token < end; token = next) {
        next = (token / SPAN + 1) * SPAN;
        next = next < end ? next : end;
        for (int head = 0; head < kv_heads; head++)
            for (int r = 0; r < count; r += MOST_ROWS) {
                int some = count - r < MOST_ROWS ? count - r : MOST_ROWS;
                Row *first = rows + head * count + r;
                if (first[some - 1].sees > token)
                    meet(op, table, kv_head + head, first, some, token, next);
            }
    }
}

/* Rows that have met nothing yet, ascending by what they see: of tokens `first` to `last`, the heads
 * [head, head + heads). `ends` says what each token sees, or the last of all sees `inner` tokens. */
static int begin(const Operation *op, Row *rows, int64_t first, int64_t last, int head, int heads,
                 const int64_t *ends) {
    int64_t wide = (int64_t)(op->heads + 2 * op->kv_heads) * op->head_dim;
    int count = 0;
    for (int64_t token = first; token < last; token++)
        for (int h = head; h < head + heads; h++)
            rows[count++] = (Row){(const float *)op->a + token * wide + h * op->head_dim,
                                  (float *)op->out + (token * op->heads + h) * op->head_dim,
                                  ends ? ends[token] : op->inner - op->rows + token + 1,
                                  -INFINITY, 0.0f};
    return count;
}

static void finish(Row *rows, int count, int size) {
    for (int r = 0; r < count; r++)
        for (int i = 0; i < size && rows[r].total > 0.0f; i += LANES)
            store(rows[r].out + i, load(rows[r].out + i) / rows[r].total);
}

/* out (rows, heads, head_dim): the turned queries of a attend to a layer's memory b, whose blocks lie
 * `block_stride` numbers apart. c holds the address of each row's block table (int32), d (int64) how
 * many tokens it sees; rows of a sequence are taken together while they see more and more. `number`
 * scales scores. Fails if there is no memory for these. */
static int attend(const Operation *op) {
    const int64_t *ends = op->d, *tables = op->c;
    int shared = op->heads / op->kv_heads;
    Row *rows = malloc(sizeof(Row) * op->rows * op->heads);
    if (!rows) return -1;
    memset(op->out, 0, sizeof(float) * op->rows * op->heads * op->head_dim);
    for (int64_t row = 0, next; row < op->rows; row = next) {
        next = row + 1;
        while (next < op->rows && tables[next] == tables[row] && ends[next] > ends[next - 1]) next++;
        int count = 0, each = (int)(next - row) * shared;
        for (int head = 0; head < op->heads; head += shared)
            count += begin(op, rows + count, row, next, head, shared, ends);
        meet_all(op, (const int32_t *)tables[row], 0, op->kv_heads, rows, each, 0, ends[next - 1]);
        finish(rows, count, op->head_dim);
    }
    free(rows);
    return 0;
}

/* out (rows, heads, head_dim): the turned queries of a, the last rows of one sequence's `inner` tokens,
 * attend to listed tiles of keys in a layer's memory b, whose blocks lie `block_stride` numbers apart;
 * c is the block table (int32). d holds the lists (int32): rows of a tile, keys of a tile, how many
 * lists a tile of rows has, for as many neighbouring heads each, and the length of an entry; then, by
 * list and tile of rows, entries: how many tiles of keys, and which, ascending. `number` scales
 * scores. Who reads all tiles computes what `attend` does. Fails if there is no memory for rows. */
static int attend_tiles(const Operation *op) {
    const int32_t *lists = op->d;
    int64_t tile_q = lists[0], tile_k = lists[1], tiles = (op->rows + tile_q - 1) / tile_q;
    int shared = op->heads / op->kv_heads, sharers = op->heads / lists[2];
    int heads = sharers < shared ? sharers : shared;
    Row *rows = malloc(sizeof(Row) * tile_q * heads);
    if (!rows) return -1;
    memset(op->out, 0, sizeof(float) * op->rows * op->heads * op->head_dim);
    for (int head = 0; head < op->heads; head += heads)
        for (int64_t tile = 0; tile < tiles; tile++) {
            const int32_t *entry = lists + 4 + (head / sharers * tiles + tile) * lists[3];
            int64_t last = (tile + 1) * tile_q < op->rows ? (tile + 1) * tile_q : op->rows;
            int count = begin(op, rows, tile * tile_q, last, head, heads, 0);
            int64_t sees = rows[count - 1].sees;
            for (int at = 1; at <= entry[0]; at++) {
                int is_all = entry[0] == (sees + tile_k - 1) / tile_k;
                int64_t token = is_all ? 0 : entry[at] * tile_k, end = token + tile_k;
                meet_all(op, op->c, head / shared, 1, rows, count, token,
                         is_all || end > sees ? sees : end);
                if (is_all) break;
            }
            finish(rows, count, op->head_dim);
        }
    free(rows);
    return 0;
}

/* Walk `count` operations, each on `rows` rows if that is not 0. The index of the one that failed, or
 * -1. */
int run(const Operation *operations, int count, int rows) {
    for (int index = 0; index < count; index++) {
        Operation op = operations[index];
        if (rows) op.rows = rows;
        int failed = 0;
        switch (op.kind) {
        case PRODUCT: product(&op); break;
        case NORM: norm(&op); break;
        case SILU_MUL: silu_mul(&op); break;
        case EMBED: embed(&op); break;
        case ANGLES: angles(&op); break;
        case WRITE: write(&op); break;
        case ATTEND: failed = attend(&op); break;
        case ATTEND_TILES: failed = attend_tiles(&op); break;
        default: failed = -1;
        }
        if (failed) return index;
    }
    return -1;
}

/* Columns of a panel: how weights are laid out is the caller's work. */
int panel_width(void) { return PANEL; }
