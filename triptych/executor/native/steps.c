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

#define MOST_ROWS 4 /* of a sequence that attend together */

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
#else
#define SHUFFLED(v, ...) __builtin_shuffle(v, (Int){__VA_ARGS__})
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

/* Softmax of `count` scores, in place; LANES numbers behind them are written too. */
INLINE void soften(float *scores, int64_t count) {
    Vec most = fill(-INFINITY), total = {0};
    store(scores + count, most);
    for (int64_t i = 0; i < count; i += LANES) {
        Vec v = load(scores + i);
        most = choose(v > most, v, most);
    }
    float best = most[0];
    for (int i = 1; i < LANES; i++) best = most[i] > best ? most[i] : best;
    for (int64_t i = 0; i < count; i += LANES) {
        Vec v = exponential(load(scores + i) - best);
        store(scores + i, v);
        total += v;
    }
    float scale = 1.0f / sum(total);
    for (int64_t i = 0; i < count; i += LANES) store(scores + i, load(scores + i) * scale);
}

/* What a part of VECTORS vectors of a query adds to the scores of `count` keys, `run` numbers apart;
 * and of `count` values, weighed, to the same part of the output. */
#define PART(VECTORS)                                                                              \
    static void score_##VECTORS(const float *query, const float *keys, int run, int count,         \
                                float scale, float *scores) {                                      \
        Vec q[VECTORS];                                                                            \
        ALL(v, VECTORS) q[v] = load(query + v * LANES);                                            \
        for (int64_t t = 0; t < count; t++) {                                                      \
            Vec dots[2] = {{0}, {0}};                                                              \
            ALL(v, VECTORS) dots[v % 2] += q[v] * load(keys + t * run + v * LANES);                \
            scores[t] += sum(dots[0] + dots[1]) * scale;                                           \
        }                                                                                          \
    }                                                                                              \
    static void weigh_##VECTORS(const float *weights, const float *values, int run, int count,     \
                                float *out) {                                                      \
        Vec sums[VECTORS];                                                                         \
        ALL(v, VECTORS) sums[v] = load(out + v * LANES);                                           \
        for (int64_t t = 0; t < count; t++)                                                        \
            ALL(v, VECTORS) sums[v] += weights[t] * load(values + t * run + v * LANES);            \
        ALL(v, VECTORS) store(out + v * LANES, sums[v]);                                           \
    }

PART(1)
PART(2)
PART(4)
PART(8)

/* Parts of a head of `size` numbers: as many vectors as fit the registers, then half as many, ... */
#define BY_PARTS(CALL_8, CALL_4, CALL_2, CALL_1)                                                   \
    for (int at = 0, left; (left = (size - at) / LANES) > 0;)                                      \
        if (left >= 8) CALL_8, at += 8 * LANES;                                                    \
        else if (left >= 4) CALL_4, at += 4 * LANES;                                               \
        else if (left >= 2) CALL_2, at += 2 * LANES;                                               \
        else CALL_1, at += LANES;

INLINE void score(const float *query, const float *keys, int run, int count, float scale,
                  float *scores, int size) {
    BY_PARTS(score_8(query + at, keys + at, run, count, scale, scores),
             score_4(query + at, keys + at, run, count, scale, scores),
             score_2(query + at, keys + at, run, count, scale, scores),
             score_1(query + at, keys + at, run, count, scale, scores))
}

INLINE void weigh(const float *weights, const float *values, int run, int count, float *out,
                  int size) {
    BY_PARTS(weigh_8(weights, values + at, run, count, out + at),
             weigh_4(weights, values + at, run, count, out + at),
             weigh_2(weights, values + at, run, count, out + at),
             weigh_1(weights, values + at, run, count, out + at))
}

/* Some rows of one sequence, all heads: each block's keys are read once, front to back, and then each
 * block's values. `scores` are zeros, a line for each row and head. */
static void attend_rows(const Operation *op, int64_t first, int rows, int64_t line, float *scores) {
    int size = op->head_dim, heads = op->heads, run = op->kv_heads * size;
    int64_t wide = (int64_t)(heads + 2 * op->kv_heads) * size, block_size = op->block_size;
    const int64_t *ends = (const int64_t *)op->d + first;
    const int32_t *table = ((const int32_t *const *)op->c)[first];
    for (int is_value = 0; is_value < 2; is_value++) {
        for (int64_t block = 0; block * block_size < ends[rows - 1]; block++) {
            const float *memory = (const float *)op->b + table[block] * op->block_stride;
            for (int part = 0; part < rows * heads; part++) {
                int row = part / heads, head = part % heads;
                int64_t left = ends[row] - block * block_size;
                int count = (int)(left < block_size ? left : block_size);
                if (count <= 0) continue;
                float *at_block = scores + part * line + block * block_size;
                const float *query = (const float *)op->a + (first + row) * wide + head * size;
                const float *keys = memory + head * op->kv_heads / heads * size;
                const float *values = keys + block_size * run;
                float *out = (float *)op->out + (first * heads + part) * size;
                if (is_value) weigh(at_block, values, run, count, out, size);
                else score(query, keys, run, count, op->number, at_block, size);
            }
        }
        for (int part = 0; part < rows * heads && !is_value; part++)
            soften(scores + part * line, ends[part / heads]);
    }
}

/* out (rows, heads, head_dim): the turned queries of a attend to a layer's memory b, whose blocks lie
 * `block_stride` numbers apart. c holds the address of each row's block table (int32), d (int64) how
 * many tokens it sees; rows of a sequence are taken together while they see more and more. `number`
 * scales scores. Fails if there is no memory for these. */
static int attend(const Operation *op) {
    const int64_t *ends = op->d, *tables = op->c;
    int64_t longest = 0;
    for (int64_t row = 0; row < op->rows; row++) longest = ends[row] > longest ? ends[row] : longest;
    int64_t line = longest + LANES;
    size_t bytes = sizeof(float) * MOST_ROWS * op->heads * line;
    float *scores = malloc(bytes);
    if (!scores) return -1;
    memset(op->out, 0, sizeof(float) * op->rows * op->heads * op->head_dim);
    for (int64_t row = 0, next; row < op->rows; row = next) {
        next = row + 1;
        while (next < op->rows && next < row + MOST_ROWS && tables[next] == tables[row] &&
               ends[next] > ends[next - 1])
            next++;
        memset(scores, 0, bytes / MOST_ROWS * (next - row));
        attend_rows(op, row, (int)(next - row), line, scores);
    }
    free(scores);
    return 0;
}

/* Some rows of a chunk from `first` on, one head: the keys of the listed tiles, then their values.
 * `scores` are zeros, a line for each row: what a row sees lies side by side in it. */
static void attend_listed(const Operation *op, int64_t first, int rows, int head,
                          const int32_t *entry, int64_t line, float *scores) {
    int size = op->head_dim, heads = op->heads, run = op->kv_heads * size;
    int64_t wide = (int64_t)(heads + 2 * op->kv_heads) * size, block_size = op->block_size;
    int64_t tile_k = ((const int32_t *)op->d)[1], sees = op->inner - op->rows + first + 1;
    for (int is_value = 0; is_value < 2; is_value++) {
        int64_t seen[MOST_ROWS] = {0};
        for (int at = 1; at <= entry[0]; at++) {
            int64_t token = entry[at] * tile_k, end = token + tile_k, next;
            for (end = end < op->inner ? end : op->inner; token < end; token = next) {
                next = (token / block_size + 1) * block_size;
                next = next < end ? next : end;
                const float *keys = (const float *)op->b + token % block_size * run +
                                    ((const int32_t *)op->c)[token / block_size] * op->block_stride +
                                    head * op->kv_heads / heads * size;
                for (int row = 0; row < rows; row++) {
                    int64_t left = sees + row - token;
                    int count = (int)(left < next - token ? left : next - token);
                    if (count <= 0) continue;
                    float *at_tokens = scores + row * line + seen[row];
                    seen[row] += count;
                    const float *query = (const float *)op->a + (first + row) * wide + head * size;
                    float *out = (float *)op->out + ((first + row) * heads + head) * size;
                    if (is_value) weigh(at_tokens, keys + block_size * run, run, count, out, size);
                    else score(query, keys, run, count, op->number, at_tokens, size);
                }
            }
        }
        for (int row = 0; row < rows && !is_value; row++) soften(scores + row * line, seen[row]);
    }
}

/* out (rows, heads, head_dim): the turned queries of a, the last rows of one sequence's `inner` tokens,
 * attend to listed tiles of keys in a layer's memory b, whose blocks lie `block_stride` numbers apart;
 * c is the block table (int32). d holds the lists (int32): rows of a tile, keys of a tile, how many
 * lists a tile of rows has, for as many neighbouring heads each, and the length of an entry; then, by
 * list and tile of rows, entries: how many tiles of keys, and which, ascending. `number` scales
 * scores. Fails if there is no memory for these. */
static int attend_tiles(const Operation *op) {
    const int32_t *lists = op->d;
    int64_t tile_q = lists[0], tiles = (op->rows + tile_q - 1) / tile_q, line = op->inner + LANES;
    float *scores = malloc(sizeof(float) * MOST_ROWS * line);
    if (!scores) return -1;
    memset(op->out, 0, sizeof(float) * op->rows * op->heads * op->head_dim);
    for (int head = 0; head < op->heads; head++)
        for (int64_t row = 0, next; row < op->rows; row = next) {
            int64_t end = (row / tile_q + 1) * tile_q;
            next = row + MOST_ROWS < end ? row + MOST_ROWS : end;
            next = next < op->rows ? next : op->rows;
            int64_t entry = head * (int64_t)lists[2] / op->heads * tiles + row / tile_q;
            memset(scores, 0, sizeof(float) * line * (next - row));
            attend_listed(op, row, (int)(next - row), head, lists + 4 + entry * lists[3], line, scores);
        }
    free(scores);
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
