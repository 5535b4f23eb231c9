-- An agreement whose instalment has been unpaid for five days or more, and no new agreement since.
--
-- columns: telefone_1;telefone_2;telefone_3;nome;cpf;contrato;parcelas;valor_parcela;parcela_vencida_em;valor_total
-- phones: telefone_1, telefone_2, telefone_3
-- unique: cpf
-- min_rows: 50
-- max_rows: 10000
-- The instalments take a while to add up on the last day of a month.
-- timeout: 300

-- Two statements. The last one is the mailing, and what comes before only prepares it, for this transaction alone.
SET LOCAL work_mem = '64MB';

WITH ultimo_acordo AS (
    SELECT DISTINCT ON (contrato) *
    FROM acordos
    ORDER BY contrato, fechado_em DESC, acordo_id DESC
)
SELECT f.telefone_1,
       f.telefone_2,
       f.telefone_3,
       c.nome,
       c.cpf,
       a.contrato,
       a.parcelas,
       replace(a.valor_parcela::text, '.', ',') AS valor_parcela,
       to_char(a.parcela_vence, 'DD/MM/YYYY') AS parcela_vencida_em,
       replace(d.valor::text, '.', ',') AS valor_total
FROM ultimo_acordo AS a
JOIN contratos AS d USING (contrato)
JOIN clientes AS c USING (cliente_id)
JOIN telefones_discador AS f USING (cliente_id)
WHERE a.situacao = 'quebrado'
  AND a.parcela_vence <= current_date - 5
  AND d.situacao = 'aberto'
  AND NOT EXISTS (SELECT FROM pagamentos AS p WHERE p.contrato = a.contrato AND p.pago_em >= a.parcela_vence)
  AND NOT EXISTS (SELECT FROM nao_perturbe AS n WHERE n.cpf = c.cpf)
ORDER BY a.parcela_vence DESC, d.valor DESC, a.contrato;
