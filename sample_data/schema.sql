-- A small collections database, as the queries in ../queries expect it. Everything generate.py puts in is invented.

CREATE TABLE clientes (
    cliente_id    bigint PRIMARY KEY,
    cpf           text NOT NULL,  -- 11 digits, leading zeros kept; not unique, since some people were registered twice
    nome          text NOT NULL,
    nascimento    date,
    email         text,
    endereco      text,           -- as typed, line breaks included
    cidade        text,
    uf            text,
    score         integer,        -- 0-1000; null for whom the bureau does not know
    observacao    text            -- the negotiators' own notes, as typed
);

CREATE TABLE telefones (
    telefone_id   bigint PRIMARY KEY,
    cliente_id    bigint NOT NULL REFERENCES clientes,
    numero        text NOT NULL,  -- as typed: with +55, a zero, brackets, or plainly wrong
    prioridade    smallint NOT NULL,
    ativo         boolean NOT NULL DEFAULT true
);

CREATE TABLE contratos (
    contrato      text PRIMARY KEY,  -- 10 or 20 digits with leading zeros; never a number
    cliente_id    bigint NOT NULL REFERENCES clientes,
    produto       text,
    valor         numeric(14, 2) NOT NULL,
    vencimento    date NOT NULL,
    situacao      text NOT NULL CHECK (situacao IN ('aberto', 'liquidado', 'cancelado'))
);

CREATE TABLE acordos (
    acordo_id     bigint PRIMARY KEY,
    contrato      text NOT NULL REFERENCES contratos,
    fechado_em    date NOT NULL,
    parcelas      smallint NOT NULL,
    valor_parcela numeric(14, 2) NOT NULL,
    parcela_vence date NOT NULL,  -- the next instalment, or the one that was not paid
    situacao      text NOT NULL CHECK (situacao IN ('vigente', 'quebrado', 'cumprido'))
);

CREATE TABLE promessas (
    promessa_id   bigint PRIMARY KEY,
    contrato      text NOT NULL REFERENCES contratos,
    prometido_em  timestamp NOT NULL,
    para_dia      date NOT NULL,
    valor         numeric(14, 2)  -- null: promised to pay, no amount said
);

CREATE TABLE pagamentos (
    pagamento_id  bigint PRIMARY KEY,
    contrato      text NOT NULL REFERENCES contratos,
    pago_em       date NOT NULL,
    valor         numeric(14, 2) NOT NULL
);

CREATE TABLE nao_perturbe (  -- who asked not to be called
    cpf           text PRIMARY KEY,
    desde         date NOT NULL,
    canal         text
);

CREATE INDEX ON clientes (cpf);
CREATE INDEX ON telefones (cliente_id);
CREATE INDEX ON contratos (cliente_id);
CREATE INDEX ON contratos (vencimento) WHERE situacao = 'aberto';
CREATE INDEX ON acordos (contrato);
CREATE INDEX ON promessas (para_dia);
CREATE INDEX ON pagamentos (contrato);

-- The best three numbers of each customer side by side, as a dialer wants them.
CREATE VIEW telefones_discador AS
SELECT cliente_id,
       max(numero) FILTER (WHERE posicao = 1) AS telefone_1,
       max(numero) FILTER (WHERE posicao = 2) AS telefone_2,
       max(numero) FILTER (WHERE posicao = 3) AS telefone_3
FROM (SELECT cliente_id,
             numero,
             row_number() OVER (PARTITION BY cliente_id ORDER BY prioridade, telefone_id) AS posicao
      FROM telefones
      WHERE ativo) AS numerados
WHERE posicao <= 3
GROUP BY cliente_id;
